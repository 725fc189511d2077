"""Runs in a box of the image `net-clients`: uses each client once against each kind of server, and prints what came of it as JSON.

Its argument is JSON: `mark` of the engine, `ports` by server, `roots` (PEM of the real authority), `ssh_user`, `known_host`. Every entry of the answer is
`[status, stdout, stderr]` of a program or `["ok" | name of the exception, text]` of Python's own.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request

GIVEN = json.loads(sys.argv[1])
PORTS = GIVEN["ports"]
WEB = f"https://web.internal:{PORTS['web']}"
GIT = f"https://git.internal:{PORTS['web']}/git/site.git"
S3 = f"https://s3.us-east-1.amazonaws.com:{PORTS['s3']}"
report = {}


def run(name, *argv, text=None, **environment):
    try:
        done = subprocess.run(
            argv, input=text or "", capture_output=True, text=True, timeout=25, env={**os.environ, **environment}, check=False
        )
        report[name] = [done.returncode, done.stdout[-4000:], done.stderr[-2000:]]
    except subprocess.TimeoutExpired:
        report[name] = ["timeout", "", ""]


def do(name, work):
    try:
        report[name] = ["ok", work()]
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is reported
        report[name] = [type(error).__name__, str(error)[-2000:]]


def write(path, content, mode=0o600):
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, mode), "w") as file:
        file.write(content)


def urllib_get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]


def requests_get():
    import requests

    answer = requests.get(f"{WEB}/repos/acme/requests", headers={"Authorization": "Bearer the-tools-own"}, timeout=10)
    return [answer.status_code, answer.text]


def httpx_get():
    import httpx

    with httpx.Client(timeout=10) as client:
        answers = [client.get(f"{WEB}/repos/acme/httpx?{n}") for n in range(3)]
    return [answers[-1].status_code, answers[-1].text]


def psycopg_query():
    import psycopg

    with psycopg.connect(f"host=db.internal port={PORTS['db']} user=tool dbname=app connect_timeout=10") as connection:
        return connection.execute("SELECT session_user, (SELECT count(*) FROM sold)").fetchone()


def s3_objects():
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", endpoint_url=S3, region_name="us-east-1", aws_access_key_id="placeholder", aws_secret_access_key="placeholder",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="a folder/file", Body=b"content of the object")
    return client.get_object(Bucket="bucket", Key="a folder/file")["Body"].read().decode()


def connected(family, address, port):
    with socket.socket(family) as each:
        each.settimeout(5)
        each.connect((address, port))
        return "connected"


def said_first(name, port):
    with socket.create_connection((name, port), timeout=5) as each:
        return each.recv(8).decode()


# What is allowed.
do("urllib", lambda: urllib_get(f"{WEB}/repos/acme/urllib"))
do("requests", requests_get)
do("httpx", httpx_get)
run("curl", "curl", "-sS", "-m", "10", "-w", "\n%{http_code} %{http_version}", f"{WEB}/repos/acme/curl")
run("node", "node", "-e", f"fetch('{WEB}/repos/acme/node').then(async r => console.log(r.status, await r.text()))")
run("openssl", "openssl", "s_client", "-connect", f"web.internal:{PORTS['web']}", "-servername", "web.internal", "-verify_return_error")
write("/tmp/roots.pem", GIVEN["roots"])
run("tls", "curl", "-sS", "-m", "10", "--cacert", "/tmp/roots.pem", f"https://pass.internal:{PORTS['web']}/anything/at/all")
git = ["git", "-c", "user.name=t", "-c", "user.email=t@example"]
run("git clone", *git, "clone", "-q", GIT, "/tmp/site")
write(f"/tmp/site/{GIVEN['mark']}", "by the tool\n")
run("git commit", *git, "-C", "/tmp/site", "add", GIVEN["mark"])
run("git commit", *git, "-C", "/tmp/site", "commit", "-qm", "second")
run("git push", *git, "-C", "/tmp/site", "push", "-q", "origin", "HEAD:main")
run("psql", "psql", "-XAtq", "-h", "db.internal", "-p", str(PORTS["db"]), "-U", "tool", "-d", "app", "-c", "SELECT session_user, item FROM sold")
do("psycopg", psycopg_query)
with open("/run/secrets/ssh-key") as file:
    write("/tmp/key", file.read().rstrip() + "\n")
write("/tmp/known", f"[ssh.internal]:{PORTS['ssh']} {GIVEN['known_host']}\n")
ssh = ["ssh", "-F", "none", "-i", "/tmp/key", "-oUserKnownHostsFile=/tmp/known", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes"]
run("ssh", *ssh, "-p", str(PORTS["ssh"]), f"{GIVEN['ssh_user']}@ssh.internal", "uptime")
do("ssh banner", lambda: said_first("ssh.internal", PORTS["ssh"]))
do("s3", s3_objects)

# What is not.
do("path", lambda: urllib_get(f"{WEB}/admin"))
run("method", "curl", "-sS", "-m", "10", "-X", "DELETE", "-w", "\n%{http_code}", f"{WEB}/repos/acme/x")
do("name", lambda: urllib_get("https://elsewhere.example/"))
run("name by curl", "curl", "-sS", "-m", "10", "https://elsewhere.example/")
run("name by node", "node", "-e", "fetch('https://elsewhere.example/').catch(e => { console.log(e.cause.code); process.exit(1) })")
run("sni", "curl", "-sS", "-m", "10", "--cacert", "/tmp/roots.pem", "--connect-to", f"::pass.internal:{PORTS['web']}", f"https://other.internal:{PORTS['web']}/")
run("sni by openssl", "openssl", "s_client", "-connect", f"web.internal:{PORTS['web']}", "-servername", "other.internal")
run("h2", "curl", "-sS", "-m", "10", "--http2", "-w", "\n%{http_code} HTTP/%{http_version}", f"{WEB}/repos/acme/h2")
do("metadata", lambda: connected(socket.AF_INET, "169.254.169.254", 80))
do("literal", lambda: connected(socket.AF_INET, "127.0.0.1", PORTS["web"]))
do("literal v6", lambda: connected(socket.AF_INET6, "2606:4700:4700::1111", 443))
do("rebound", lambda: urllib_get(f"https://rebound.internal:{PORTS['web']}/"))
run("psql replication", "psql", f"host=db.internal port={PORTS['db']} user=tool dbname=app replication=database", "-c", "IDENTIFY_SYSTEM")
run("psql elsewhere", "psql", "-XAtq", "-h", "pass.internal", "-p", str(PORTS["web"]), "-U", "tool", "-c", "SELECT 1")
run("psql tls", "psql", f"host=db.internal port={PORTS['db']} user=tool dbname=app sslmode=require", "-c", "SELECT 1")
report["environment"] = dict(os.environ)
print(json.dumps(report))
