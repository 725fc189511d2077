"""What a profile lets out: the syntax, what cannot be, what it means, and what people are told of it."""

from typing import Any

import pytest

from fumehood.profile.explain import sentences, shown
from fumehood.profile.lint import findings
from fumehood.reach import (
    CredentialUse,
    Delivery,
    EgressKind,
    EgressRule,
    Network,
    NetworkLimits,
    Scheme,
)

EXAMPLE = """
image: a
network:
  egress:
    - http: api.github.com            # TLS terminated by us; method and path rules hold
      allow: ["GET /repos/acme/**", "POST /repos/acme/site/issues"]
      credential: github
    - tls: "*.example.org"            # passed through, SNI checked; labelled "SNI only"
      ports: [443]
    - postgres: db.internal:5432      # protocol known: authentication done by the gate
      addresses: [10.20.0.0/16]       # private ranges only when named
      credential: reporting
    - tcp: cache.internal:6379
      addresses: [10.20.0.0/16]
  limits: {connections: 64, bytes_out: 10MiB, bytes_in: 200MiB, dns_per_second: 20}
"""


def egress(*rules: str, rest: str = "") -> str:
    return "image: a\nnetwork:\n  egress:\n" + "".join(f"    - {{{rule}}}\n" for rule in rules) + rest


def uses(text: str, *, scope: str = "call", rules: tuple[str, ...] = ("http: a.example, credential: k",)) -> str:
    return egress(*rules, rest=f"scope: {scope}\ncredentials:\n  k: {{{text}}}\n")


def test_the_example_means_what_it_says(shelf: Any) -> None:
    shelf.put("p", EXAMPLE)
    profile = shelf.load("p")
    private = ("10.20.0.0/16",)
    assert profile.network == Network(
        rules=(
            EgressRule(
                kind=EgressKind.HTTP,
                name="api.github.com",
                ports=(443,),
                allow=("GET /repos/acme/**", "POST /repos/acme/site/issues"),
                credential="github",
            ),
            EgressRule(kind=EgressKind.TLS, name="*.example.org", ports=(443,)),
            EgressRule(
                kind=EgressKind.POSTGRES, name="db.internal", ports=(5432,), addresses=private, credential="reporting"
            ),
            EgressRule(kind=EgressKind.TCP, name="cache.internal", ports=(6379,), addresses=private),
        ),
        limits=NetworkLimits(connections=64, bytes_out=10 * 2**20, bytes_in=200 * 2**20, dns_per_second=20),
    )
    assert profile.credentials == (
        CredentialUse(name="github", source="github", header="Authorization"),
        CredentialUse(name="reporting", source="reporting"),
    )


@pytest.mark.parametrize(
    ("rule", "kind", "ports"),
    [
        ("http: a.example", EgressKind.HTTP, (443,)),
        ("http: a.example, insecure: true", EgressKind.HTTP, (80,)),
        ("http: 'a.example:8443'", EgressKind.HTTP, (8443,)),
        ("http: a.example, ports: [8443, 443]", EgressKind.HTTP, (443, 8443)),
        ("http: '*.a.example'", EgressKind.HTTP, (443,)),
        ("tls: xn--bcher-kva.example", EgressKind.TLS, (443,)),
        ("postgres: db, credential: k", EgressKind.POSTGRES, (5432,)),
        ("postgres: db, credential: k, insecure: true", EgressKind.POSTGRES, (5432,)),
        ("tcp: db.internal, ports: [22]", EgressKind.TCP, (22,)),
    ],
)
def test_ports_have_their_usual_defaults(shelf: Any, rule: str, kind: EgressKind, ports: tuple[int, ...]) -> None:
    shelf.put("p", egress(rule))
    (found,) = shelf.load("p").network.rules
    assert (found.kind, found.ports) == (kind, ports)


ADDRESS = "expected a name, found the address"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("http: 10.1.2.3", "4:14: network.egress[0].http: " + ADDRESS),
        ("tcp: '10.1.2.3:80'", ADDRESS),
        ("tls: 0x7f.1", ADDRESS),
        ("tls: '2130706433'", ADDRESS),
        ("tls: 1.2.0x", ADDRESS),
        ("tcp: '[::1]:80'", ADDRESS),
        ("tcp: '::1'", ADDRESS),
        ("tls: 1.2.3.4.", "expected a name without a dot at its end"),
        ("http: Api.GitHub.com", "expected a name in lower case, found 'Api.GitHub.com'; did you mean api.github.com?"),
        ("http: 'https://a.example'", "expected a host's name: the scheme is the kind of rule"),
        ("http: a.example/path", "paths belong into `allow`"),
        ("http: a.example.", "expected a name without a dot at its end"),
        ("http: bücher.example", "expected a name as DNS has it"),
        ("http: a_b.example", "expected a host's name: labels of a-z"),
        ("http: -a.example", "expected a host's name: labels of a-z"),
        ("http: a..example", "expected a host's name: labels of a-z"),
        ("http: ''", "expected a host's name: labels of a-z"),
        (f"http: {'a' * 64}.example", "expected a host's name: labels of a-z"),
        ("http: user@a.example", "expected a host's name: labels of a-z"),
        ('http: "a.example\\n"', "expected a host's name: labels of a-z"),
        ("http: localhost", "expected another name: a box's localhost is its own loopback"),
        ("tls: x.localhost", "expected another name"),
        ("http: 'a.example:0'", "expected a port from 1 to 65535"),
        ("http: 'a.example:65536'", "expected a port from 1 to 65535"),
        ("http: 'a.example:0443'", "expected a port from 1 to 65535"),
        ("tls: '*'", "expected at most one `*`, as the whole first label"),
        ("tls: '*.com'", "expected at least two labels after `*.`"),
        ("tls: 'a*.example.org'", "expected at most one `*`, as the whole first label"),
        ("tls: '*.*.example.org'", "expected at most one `*`"),
        ("tls: a.*.example.org", "expected at most one `*`"),
        ("postgres: '*.example.org', credential: k", "expected a name without `*`: only http and tls say"),
        ("tcp: '*.example.org:1'", "expected a name without `*`: only http and tls say"),
        ("http: '*.example.org', credential: k", "network.egress[0].credential: expected a rule for one name"),
        ("http: 1", "expected HOST or HOST:PORT, found 1"),
        ("ports: [1]", "4:7: network.egress[0]: expected exactly one of http, tls, postgres, tcp, found none"),
        ("http: a.example, tls: a.example", "expected exactly one of http, tls, postgres, tcp, found http and tls"),
        ("htp: a.example", "network.egress[0].htp: expected a known field; nearest valid name: http"),
        ("tcp: a.example", "network.egress[0].tcp: expected HOST:PORT: tcp has no port of its own"),
        ("http: 'a.example:443', ports: [443]", "network.egress[0].ports: expected the port once"),
        ("http: a.example, ports: [443, 443]", "expected each port once"),
        ("http: a.example, ports: [0]", "network.egress[0].ports[0]: expected at least 1"),
        ("tcp: a.example, ports: [53]", "expected another port than 53, where the gate itself answers"),
        ("tls: 'a.example:53'", "expected another port than 53"),
        ("tls: a.example, allow: ['GET /']", "network.egress[0].allow: expected it beside http"),
        ("tls: a.example, insecure: true", "network.egress[0].insecure: expected it beside http or postgres"),
        ("http: a.example, insecure: true, credential: k", "expected no credential beside `insecure`"),
        ("tls: a.example, credential: k", "network.egress[0].credential: expected it beside http or postgres"),
        ("tcp: 'a.example:1', credential: k", "network.egress[0].credential: expected it beside http or postgres"),
        ("postgres: db", "network.egress[0].postgres: expected `credential` beside it"),
        ("http: a.example, allow: []", "network.egress[0].allow: expected at least 1"),
        ("http: a.example, allow: ['GET']", 'network.egress[0].allow[0]: expected "METHOD /path"'),
        ("http: a.example, allow: ['get /']", 'expected "METHOD /path" with a method in capitals'),
        ("http: a.example, allow: ['GET  /']", 'expected "METHOD /path"'),
        ("http: a.example, allow: ['GET https://b/']", 'expected "METHOD /path"'),
        ("http: a.example, allow: ['CONNECT /']", "expected another method: CONNECT is never let through"),
        ("http: a.example, allow: ['GET /a/../b']", "expected a path without `.`, `..` and `//`"),
        ("http: a.example, allow: ['GET /a/.']", "expected a path without `.`, `..` and `//`"),
        ("http: a.example, allow: ['GET //a']", "expected a path without `.`, `..` and `//`"),
        ("http: a.example, allow: ['GET /%2e']", "expected the path alone"),
        ("http: a.example, allow: ['GET /a?b']", "expected the path alone"),
        ("http: a.example, allow: ['GET /a;b']", "expected the path alone"),
        ("http: a.example, allow: ['GET /a*']", "`*` and `**` stand for whole segments"),
        ("http: a.example, allow: ['GET /a b']", "expected segments of letters, digits"),
        ("http: a.example, addresses: [10.0.0.1]", "did you mean 10.0.0.1/32?"),
        ("http: a.example, addresses: [10.0.0.1/8]", "expected a network without host bits, found '10.0.0.1/8'; did you mean 10.0.0.0/8?"),
        ("http: a.example, addresses: [10.0.0.0/33]", "expected a network such as 10.20.0.0/16"),
        ("http: a.example, addresses: [010.0.0.0/8]", "expected a network such as 10.20.0.0/16"),
        ("http: a.example, addresses: [10.0.0.0/255.0.0.0]", "expected the network as it is usually written, 10.0.0.0/8"),
        ("http: a.example, addresses: ['::ffff:10.0.0.0/104']", "expected "),
        ("http: a.example, addresses: ['::ffff:a00:0/104']", "expected an IPv4 network as one"),
        ("http: a.example, addresses: [224.0.0.0/4]", "is multicast"),
        ("http: a.example, credential: A", "network.egress[0].credential: expected a name"),
    ],
)  # fmt: skip
def test_a_rule_that_could_be_read_in_two_ways_is_refused(shelf: Any, rule: str, said: str) -> None:
    assert any(said in line for line in shelf.problems(egress(rule)))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            ("http: a.example", "tls: a.example"),
            "5:13: network.egress[1].tls: expected one rule for each name and port: a.example on port 443 is in rule 1",
        ),
        (("tls: '*.example.org'", "http: api.example.org"), "api.example.org and *.example.org on port 443 is in rule 1"),
        (("http: api.example.org", "tls: '*.example.org'"), "*.example.org and api.example.org on port 443 is in rule 1"),
        (
            ("http: a.example, credential: k", "postgres: db, credential: k"),
            "network.egress[1].credential: expected a credential of its own: k is used for http already",
        ),
        (tuple(f"tls: a{n}.example, ports: [1, 2, 3]" for n in range(21)), "expected at most 60 pairs of a name and a port, found 63"),
        ((*(f"tls: a.example, ports: [{n}]" for n in range(100, 132)), "tls: b.example"), "expected at most 32 entries"),
        (tuple(f"tls: a{n}.example, ports: [{3 * n + 1}, {3 * n + 2}, {3 * n + 3}]" for n in range(11)), "expected at most 32 different ports"),
    ],
)  # fmt: skip
def test_each_name_and_port_has_one_rule(shelf: Any, rules: tuple[str, ...], said: str) -> None:
    assert any(said in line for line in shelf.problems(egress(*rules)))


def test_a_wildcard_stands_for_one_label_and_other_ports_are_other_rules(shelf: Any) -> None:
    shelf.put("p", egress("tls: '*.example.org'", "http: a.b.example.org", "http: example.org", "tls: 'api.example.org:8443'"))
    assert len(shelf.load("p").network.rules) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"header": "Authorization", "scheme": Scheme.BEARER}),
        ("use: other", {"source": "other", "header": "Authorization"}),
        ("header: X-Api-Key", {"header": "X-Api-Key", "scheme": Scheme.RAW}),
        ("query: key", {"header": None, "query": "key", "scheme": Scheme.RAW}),
        ("scheme: basic, username: x-access-token", {"header": "Authorization", "username": "x-access-token"}),
        ("scheme: sigv4", {"header": None, "query": None, "scheme": Scheme.SIGV4}),
        ("variable: GITHUB_TOKEN", {"variable": "GITHUB_TOKEN", "deliver": Delivery.GATE}),
        ("scope: {repositories: ['{args.repo}']}", {"scope": {"repositories": ["{args.repo}"]}}),
    ],
)
def test_a_credential_has_one_place(shelf: Any, text: str, expected: dict[str, Any]) -> None:
    shelf.put("p", uses(text))
    (use,) = shelf.load("p").credentials
    assert {name: getattr(use, name) for name in expected} == expected


def test_what_the_tool_itself_presents_needs_no_rule(shelf: Any) -> None:
    shelf.put("p", uses("deliver: file", rules=("tcp: 'git.internal:22'",)))
    (use,) = shelf.load("p").credentials
    assert (use.deliver, use.file, use.header) == (Delivery.FILE, "k", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("header: X-A, query: a", "credentials.k.query: expected one place: a header or a query parameter"),
        ("scheme: sigv4, header: X-A", "credentials.k.scheme: expected neither header nor query beside sigv4"),
        ("scheme: bearer, query: a", "credentials.k.scheme: expected raw beside a query parameter, found bearer"),
        ("header: Host", "credentials.k.header: expected another header: Host frames or routes the message"),
        ("header: transfer-encoding", "expected another header"),
        ("header: X-HTTP-Method-Override", "expected another header"),
        ("header: 'X A'", "expected a header's name"),
        ("query: 'a&b'", "expected a query parameter's name"),
        ("username: me", "credentials.k.username: expected `scheme: basic` beside it"),
        ("scheme: basic, username: 'a:b'", "expected a name without `:`"),
        ("file: x", "credentials.k.file: expected `deliver: file` beside it"),
        ("deliver: env, variable: A", "network.egress[0].credential: expected one that the gate delivers"),
        ("deliver: gates", "expected gate, file or env, found 'gates'; nearest valid name: gate"),
        ("variable: A-B", "expected a variable name"),
        ("scope: {a: '{args.b'}", "credentials.k.scope: expected arguments as {args.NAME}, found '{args.b'"),
        ("scope: {a: ['{args.b.c}']}", "expected arguments as {args.NAME}"),
        ("scope: {'{args.a}': x}", "expected arguments in values alone"),
        ("provider: x", "credentials.k.provider: expected a known field"),
        ("token: x", "credentials.k.token: expected a known field"),
    ],
)
def test_a_use_that_cannot_be_is_refused(shelf: Any, text: str, said: str) -> None:
    assert any(said in line for line in shelf.problems(uses(text)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deliver: env", "credentials.k.deliver: expected `variable` beside `env`"),
        ("deliver: env, variable: A, header: X-A", "credentials.k.header: expected it beside `deliver: gate`"),
    ],
)
def test_a_delivery_to_the_tool_is_spelt_out(shelf: Any, text: str, said: str) -> None:
    assert any(said in line for line in shelf.problems(uses(text, rules=("tls: a.example",))))


def test_a_secret_that_the_tool_has_does_not_outlive_its_lease_in_a_box(shelf: Any) -> None:
    said = "credentials.k.deliver: expected `gate` beside "
    rules = ("tls: a.example",)
    (line,) = shelf.problems(uses("deliver: env, variable: A", scope="session", rules=rules))
    assert said + "`scope: session`: a lease ends with its call" in line
    (line,) = shelf.problems(uses("deliver: file", rules=rules) + "ask: {elicitation: true}\n")
    assert said + "`ask`" in line
    shelf.put("p", uses("variable: A", scope="session"))
    assert shelf.load("p").credentials


def test_two_things_never_write_one_place(shelf: Any) -> None:
    one = "image: a\nnetwork: {egress: [{tls: a.example}]}\ncredentials:\n  k: {deliver: env, variable: A}\n"
    assert "expected each variable once: A is set by `environment`" in shelf.problems(one + "environment: {A: b}\n")[0]
    assert "expected each variable once: A is set by k" in shelf.problems(one + "  l: {deliver: env, variable: A}\n")[0]
    two = one + "  m: {deliver: file}\n  n: {deliver: file, file: m}\n"
    assert "expected each file once: /run/secrets/m is the credential m" in shelf.problems(two)[0]


def test_a_login_has_no_place_in_http(shelf: Any) -> None:
    (line,) = shelf.problems(uses("header: X-A", rules=("postgres: db, credential: k",)))
    assert "credentials.k.header: expected nothing of HTTP: the gate logs in to a database with k" in line


def test_a_child_changes_limits_field_by_field_and_rules_whole(shelf: Any) -> None:
    shelf.put("base-one", egress("http: a.example, credential: k", rest="  limits: {connections: 2, dns_per_second: 3}\n"))
    shelf.put("p", "extends: base-one\nnetwork: {limits: {connections: 1}}\ncredentials: {k: {header: X-A}}\n")
    profile = shelf.load("p")
    assert (profile.network.limits.connections, profile.network.limits.dns_per_second) == (1, 3)
    assert [rule.name for rule in profile.network.rules] == ["a.example"]
    assert [use.header for use in profile.credentials] == ["X-A"]
    shelf.put("p", "extends: base-one\nnetwork: {egress: [{tls: b.example}]}\n")
    assert [rule.name for rule in shelf.load("p").network.rules] == ["b.example"]


def warnings(shelf: Any, text: str) -> list[str]:
    shelf.put("p", text)
    return [str(problem).removeprefix(f"{shelf.folder}/p.yaml:") for problem in findings(shelf.fully("p"))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (egress("tls: '*.github.io'"), "4:13: warning: network.egress[0].tls: allows every name below github.io, and anybody"),
        (egress("http: '*.co.uk'"), "allows every name below co.uk"),
        (egress("tls: a.example, addresses: [0.0.0.0/0]"), "network.egress[0].addresses[0]: is every private network around"),
        (egress("tls: a.example, addresses: ['::/0']"), "is every private network around"),
        (egress("tls: a.example, addresses: [169.254.169.254/32]"), "reaches link-local addresses, where clouds hand"),
        (egress("tls: a.example, addresses: [169.254.0.0/16]"), "reaches link-local addresses, where clouds hand"),
        (egress("tls: a.example, addresses: [127.0.0.1/32]"), "reaches this host's own loopback"),
        (egress("http: a.example, insecure: true"), "network.egress[0].insecure: everybody between"),
        (egress("http: a.example, credential: k"), "network.egress[0].credential: lets the tool do all that the credential can"),
        (egress("http: a.example, credential: k, allow: ['* /**']"), "network.egress[0].allow[0]: lets the tool do all"),
        (egress("tcp: 'a.example:443'"), "network.egress[0].tcp: nothing of what is sent is looked at"),
        (uses("deliver: env, variable: A", rules=("tls: a.example",)), "credentials.k.deliver: the tool can read the secret"),
        (uses("header: X-A", rules=("tls: a.example",)), "credentials.k: has no effect: no rule of network.egress names it"),
        ("image: a\nnetwork: {limits: {connections: 1}}\n", "network.limits: has no effect"),
    ],
)  # fmt: skip
def test_what_people_regret_is_named(shelf: Any, text: str, said: str) -> None:
    assert any(said in line for line in warnings(shelf, text))


def test_a_credential_that_the_configuration_does_not_have_is_named(shelf: Any) -> None:
    shelf.put("p", EXAMPLE)
    loaded = shelf.fully("p")
    (problem,) = findings(loaded, frozenset({"github", "reportin"}))
    assert "credentials.reporting: fumehood.yaml has no credential reporting" in str(problem)
    assert "nearest valid name: reportin" in str(problem)
    assert findings(loaded, frozenset({"github", "reporting"})) == []


def test_the_example_deserves_no_warning(shelf: Any) -> None:
    assert warnings(shelf, EXAMPLE) == []


BASE = egress("http: a.example, allow: ['GET /**', 'POST /x'], addresses: [10.0.0.0/8], credential: k", "tls: '*.example.org'")


@pytest.mark.parametrize(
    ("rule", "widens"),
    [
        ("http: a.example, allow: ['GET /**'], credential: k", False),
        ("tls: api.example.org", False),
        ("tls: '*.example.org'", False),
        ("http: a.example, credential: k", True),
        ("http: a.example, allow: ['PUT /x']", True),
        ("http: a.example, allow: ['GET /**'], addresses: [192.168.0.0/16]", True),
        ("http: a.example, allow: ['GET /**'], credential: l", True),
        ("http: a.example, allow: ['GET /**'], ports: [8443]", True),
        ("http: b.example, allow: ['GET /**']", True),
        ("tls: a.b.example.org", True),
        ("tls: a.example", True),
        ("http: a.example, allow: ['GET /**'], insecure: true", True),
    ],
)  # fmt: skip
def test_reaching_further_than_the_parent_is_named(shelf: Any, rule: str, widens: bool) -> None:
    shelf.put("base-one", BASE)
    found = warnings(shelf, egress(rule).replace("image: a", "extends: base-one"))
    assert any("network.egress[0]: widens base-one: reaches" in line for line in found) is widens


def test_higher_limits_and_other_credentials_than_the_parents_are_named(shelf: Any) -> None:
    shelf.put("base-one", BASE + "  limits: {bytes_per_second: 1MiB}\n")
    child = "extends: base-one\nnetwork: {limits: {connections: 65, bytes_out: 11MiB, bytes_per_second: null}}\n"
    found = warnings(shelf, child + "credentials: {k: {header: X-A}, l: {deliver: file}}\n")
    for said in (
        "network.limits.connections: widens base-one: 65 instead of 64",
        "network.limits.bytes_out: widens base-one: 11MiB instead of 10MiB",
        "network.limits.bytes_per_second: widens base-one: a higher rate than 1MiB a second",
        "credentials.k: widens base-one: uses the credential k in another way",
        "credentials.l: widens base-one: uses the credential l",
    ):
        assert any(said in line for line in found), said


def test_explain_says_where_a_box_can_reach_and_what_cannot_be_seen(shelf: Any) -> None:
    shelf.put("p", EXAMPLE)
    said = sentences(shelf.load("p"))
    for line in (
        "It can reach api.github.com by HTTPS, which the gate ends and reads, with only GET /repos/acme/**, POST /repos/acme/site/issues.",
        "The gate uses the credential github towards api.github.com in the header Authorization (Bearer); the tool never sees it.",
        "It can reach any one label below example.org by TLS that is passed through (SNI only: fronting behind a shared CDN is possible).",
        "It can reach the PostgreSQL server db.internal, where the gate logs in for it.",
        "db.internal may be at a private address, in 10.20.0.0/16, beside public ones.",
        "The gate uses the credential reporting towards db.internal to log in; the tool never sees it.",
        "It can reach cache.internal on port 6379 by TCP that nobody looks into.",
        "It can have 64 connections at once, send 10MiB and receive 200MiB in all, and ask for 20 names a second.",
    ):
        assert line in said
    assert not any("no network" in line for line in said)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (uses("deliver: env, variable: A", rules=("tls: a.example",)), "It has the credential k in its environment as A: visible to the tool"),
        (uses("deliver: file, variable: A", rules=("tls: a.example",)), "/run/secrets/k, which A names: visible to the tool"),
        (egress("postgres: db, credential: k, insecure: true"), "where the gate logs in for it; without TLS, so that everybody"),
        (uses("deliver: file", rules=("tls: a.example",)), "It has the credential k in the file /run/secrets/k: visible to the tool"),
        (uses("variable: A"), "It has a placeholder in its environment as A, which is worth nothing outside this box."),
        (uses("query: key"), "The gate uses the credential k towards a.example as the query parameter key"),
        (uses("scheme: sigv4"), "to sign each request (SigV4)"),
        (uses("scope: {roles: ['{args.r}'], to: x}"), "with a scope, roles, to, narrowed by the call's arguments."),
        (egress("http: a.example, insecure: true"), "by plain HTTP, which everybody on the way can read, with every request."),
    ],
)  # fmt: skip
def test_explain_says_who_sees_a_credential(shelf: Any, text: str, line: str) -> None:
    shelf.put("p", text)
    said = sentences(shelf.load("p"))
    assert any(line in each for each in said)
    assert all(each.endswith(".") for each in said)


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE,
        uses("scheme: basic, username: u, variable: A, scope: {a: ['{args.b}', {c: 1}]}"),
        uses("deliver: file, file: x", rules=("tcp: 'a.example:22', addresses: [10.0.0.0/8, 'fd00::/8']",)),
        egress("http: a.example, insecure: true, ports: [8080, 80]", rest="  limits: {bytes_per_second: 1MiB}\n"),
    ],
)
def test_what_show_prints_loads_to_the_same_digest_and_fits_the_schema(shelf: Any, text: str) -> None:
    import io

    from jsonschema import Draft202012Validator
    from ruamel.yaml import YAML

    from fumehood.profile.documents import ProfileDocument

    shelf.put("p", text)
    profile = shelf.load("p")
    out = io.StringIO()
    YAML(typ="safe", pure=True).dump(shown(profile), out)
    shelf.put("again", out.getvalue())
    assert shelf.load("again").digest == profile.digest
    Draft202012Validator(ProfileDocument.model_json_schema()).validate(shown(profile))


def test_what_is_let_out_counts_for_the_digest(shelf: Any) -> None:
    digests = set()
    for text in (egress("tls: a.example"), egress("tls: b.example"), egress("http: a.example, credential: k"), uses("header: X-A"), uses("")):
        shelf.put("p", text)
        digests.add(shelf.load("p").digest)
    assert len(digests) == 4  # a use with every default is the one that a rule alone implies
