"""System call filters: the floor, the bytes against the policy's meaning, and the bytes in the kernel."""

import ctypes
import errno
import os
import platform
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fumehood.broker import filters
from fumehood.model import ArgumentTest, SeccompPolicy, SeccompRule
from fumehood.profile import loader
from fumehood.profile.syscalls import SYSCALLS
from fumehood.reasons import Reason

FOLDERS = (loader.shipped_folder(),)
DEFAULT = loader.load_seccomp("default", FOLDERS, os.getuid())
UNIX = loader.load_seccomp("unix-sockets", FOLDERS, os.getuid())
WORKER = loader.load_seccomp("worker", FOLDERS, os.getuid())
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
X86_64, I386, X32_BIT = 0xC000003E, 0x40000003, 0x40000000
x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the numbers of x86-64")


# ---- the floor ------------------------------------------------------------------------------------------------------


def with_rule(*names: str, tests: tuple[ArgumentTest, ...] = (), action: str = "allow") -> SeccompPolicy:
    return replace(DEFAULT, rules=(*DEFAULT.rules, SeccompRule(names=names, action=action, tests=tests)))


def test_shipped_box_policies_pass_the_floor_and_the_workers_does_not() -> None:
    assert filters.check_floor(DEFAULT) is None
    assert filters.check_floor(UNIX) is None
    denied = filters.check_floor(WORKER)
    assert denied is not None
    assert denied.reason is Reason.SECCOMP_FLOOR


@pytest.mark.parametrize("name", sorted(filters.NEVER))
def test_what_no_box_may_have_is_refused_whatever_its_tests(name: str) -> None:
    tests = (ArgumentTest(index=0, op="eq", value=0),)
    for policy in (with_rule(name), with_rule("read", name, tests=tests)):
        denied = filters.check_floor(policy)
        assert denied is not None
        assert denied.rule == f"seccomp.never.{name}"
    assert filters.check_floor(with_rule(name, action="kill")) is None


@pytest.mark.parametrize("name", sorted(filters.GUARDED))
def test_guarded_calls_are_refused_without_their_guard(name: str) -> None:
    denied = filters.check_floor(with_rule(name))
    assert denied is not None
    assert denied.rule == f"seccomp.guard.{name}"


def test_names_of_the_floor_are_system_calls() -> None:
    assert set(filters.GUARDED) <= SYSCALLS
    assert set(filters.NEWER) <= SYSCALLS
    assert set(filters.NEVER) - SYSCALLS <= {"mount", "umount"}


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("clone", ArgumentTest(index=0, op="masked_eq", mask=0x10000000, value=0)),  # one flag clear, others not
        ("clone", ArgumentTest(index=1, op="masked_eq", mask=0x7E020000, value=0)),  # the wrong argument
        ("clone", ArgumentTest(index=0, op="masked_eq", mask=0x7E020000, value=0x10000000)),
        ("clone", ArgumentTest(index=0, op="ne", value=0x10000000)),
        ("clone", ArgumentTest(index=0, op="lt", value=0x10000)),  # order of 64 bits says nothing of the lower 32
        ("socket", ArgumentTest(index=0, op="eq", value=40)),  # AF_VSOCK
        ("socket", ArgumentTest(index=0, op="eq", value=17)),  # AF_PACKET
        ("socket", ArgumentTest(index=0, op="eq", value=38)),  # AF_ALG
        ("socket", ArgumentTest(index=0, op="eq", value=16)),  # AF_NETLINK of every protocol
        ("socket", ArgumentTest(index=0, op="ne", value=40)),  # Docker's own rule, passed with 1 << 32 | 40
        ("socket", ArgumentTest(index=0, op="masked_eq", mask=0xFF, value=2)),
        ("socketpair", ArgumentTest(index=0, op="eq", value=30)),  # AF_TIPC makes pairs too
        ("ioctl", ArgumentTest(index=1, op="ne", value=0x5412)),
        ("ioctl", ArgumentTest(index=1, op="masked_eq", mask=0xFF, value=0x01)),
        ("ioctl", ArgumentTest(index=1, op="eq", value=1 << 32 | 0x5412)),
        ("chmod", ArgumentTest(index=1, op="masked_eq", mask=0o4000, value=0)),
        ("fchmodat", ArgumentTest(index=1, op="masked_eq", mask=0o6000, value=0)),
        ("openat", ArgumentTest(index=2, op="masked_eq", mask=0o100, value=0)),  # leaves O_TMPFILE
    ],
)
def test_a_guard_that_does_not_hold_is_no_guard(name: str, test: ArgumentTest) -> None:
    assert filters.check_floor(with_rule(name, tests=(test,))) is not None


@pytest.mark.parametrize(
    "rule",
    [
        SeccompRule(names=("read",), action="log"),
        SeccompRule(names=("read",), action="errno", errno=4096),
        SeccompRule(names=(101,), action="allow"),  # type: ignore[arg-type] # ptrace by number, from a forged message
        SeccompRule(names=("read",), action="allow", tests=(ArgumentTest(index=6, op="eq", value=0),)),
        SeccompRule(names=("read",), action="allow", tests=(ArgumentTest(index=0, op="like", value=0),)),
        SeccompRule(names=("read",), action="allow", tests=(ArgumentTest(index=0, op="eq", value=-1),)),
        SeccompRule(names=("read",), action="allow", tests=(ArgumentTest(index=0, op="eq", value=0),) * 2),
    ],
)
def test_malformed_rules_are_refused(rule: SeccompRule) -> None:
    assert filters.check_floor(replace(DEFAULT, rules=(rule,))) is not None


@pytest.mark.parametrize("default", [None, 0, -1, 5000])
def test_a_box_policy_denies_by_default(default: int | None) -> None:
    assert filters.check_floor(replace(DEFAULT, default_errno=default)) is not None


def test_a_policy_of_countless_rules_is_refused() -> None:
    assert filters.check_floor(replace(DEFAULT, rules=DEFAULT.rules * 20)) is not None


# ---- the bytes against the meaning ----------------------------------------------------------------------------------


def run_bpf(program: bytes, number: int, args: tuple[int, ...], arch: int = X86_64) -> int:
    """What the kernel's classic BPF machine returns for one system call."""
    data = struct.pack("=iIQ6Q", number - (1 << 32 if number >= 1 << 31 else 0), arch, 0, *args)
    code = list(struct.iter_unpack("=HBBI", program))
    counter = accumulator = 0
    while True:
        op, if_true, if_false, k = code[counter]
        counter += 1
        if op == 0x20:  # ld [k]
            accumulator = int.from_bytes(data[k : k + 4], sys.byteorder)
        elif op == 0x06:  # ret k
            return int(k)
        elif op == 0x05:  # ja k
            counter += k
        elif op == 0x54:  # and k
            accumulator &= k
        elif op in (0x15, 0x25, 0x35, 0x45):  # jeq jgt jge jset
            holds = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[op]
            counter += if_true if holds else if_false
        else:
            raise AssertionError(f"unexpected instruction {op:#x}")


def holds(test: ArgumentTest, args: tuple[int, ...]) -> bool:
    value = args[test.index]
    return {
        "eq": value == test.value,
        "ne": value != test.value,
        "lt": value < test.value,
        "le": value <= test.value,
        "gt": value > test.value,
        "ge": value >= test.value,
        "masked_eq": value & test.mask == test.value,
    }[test.op]


def meaning(policy: SeccompPolicy, name: str, args: tuple[int, ...]) -> int:
    for rule in policy.rules:
        if name in rule.names and all(holds(test, args) for test in rule.tests):
            return {"allow": ALLOW, "kill": KILL, "errno": ERRNO | rule.errno}[rule.action]
    return ALLOW if policy.default_errno is None else ERRNO | policy.default_errno


NUMBERS = {number: name for name in SYSCALLS if (number := filters._number(name)) >= 0}
PROGRAMS = {policy.name: (policy, filters.compile_filter(policy)) for policy in (DEFAULT, UNIX, WORKER)}
INTERESTING = sorted(
    {0, 1, 2, 10, 16, 17, 38, 40, 0o644, 0o4755, 0o2755, 0o100, 0o20000000, 0x5401, 0x5412, 0x541C, 2**64 - 1}
    | {1 << 32 | value for value in (2, 40, 0x5401, 0x5412)}
    | {test.value for rule in (*DEFAULT.rules, *WORKER.rules) for test in rule.tests}
)


@x86_only
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_system_call_means_what_the_policy_says(name: str) -> None:
    policy, program = PROGRAMS[name]
    for number, call in NUMBERS.items():
        for args in ((0,) * 6, (2**64 - 1,) * 6, (1, 1, 1, 1, 1, 1)):
            assert run_bpf(program, number, args) == meaning(policy, call, args), (call, args)


@x86_only
@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(PROGRAMS)),
    st.sampled_from(sorted({call for rule in (*DEFAULT.rules, *WORKER.rules) if rule.tests for call in rule.names})),
    st.tuples(*[st.sampled_from(INTERESTING) | st.integers(0, 2**64 - 1)] * 6),
)
def test_argument_tests_mean_what_the_policy_says(name: str, call: str, args: tuple[int, ...]) -> None:
    policy, program = PROGRAMS[name]
    assert run_bpf(program, filters._number(call), args) == meaning(policy, call, args)


@x86_only
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["default", "unix-sockets"]), st.tuples(*[st.sampled_from(INTERESTING)] * 6))
def test_no_argument_opens_what_the_floor_forbids(name: str, args: tuple[int, ...]) -> None:
    program = PROGRAMS[name][1]
    for call in filters.NEVER:
        if (number := filters._number(call)) >= 0:
            assert run_bpf(program, number, args) != ALLOW, call


@x86_only
def test_other_abis_kill_and_calls_of_the_future_do_not_exist() -> None:
    _, program = PROGRAMS["default"]
    assert run_bpf(program, 20, (0,) * 6, arch=I386) == KILL
    assert run_bpf(program, X32_BIT | 39, (0,) * 6) == KILL
    assert run_bpf(program, 0xFFFFFFFF, (0,) * 6) == ERRNO | errno.EPERM  # -1, a call that a tracer skipped
    for number in (filters.NEWEST + 1, 600, X32_BIT - 1):
        assert run_bpf(program, number, (0,) * 6) == ERRNO | errno.ENOSYS


# ---- the bytes in the kernel ----------------------------------------------------------------------------------------

INSTALL = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def install(data):
    buffer = ctypes.create_string_buffer(data, len(data))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    program = Program(len(data) // 8, ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, os.strerror(ctypes.get_errno())
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(arg) for arg in args])
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filters")
    for name, (_, program) in PROGRAMS.items():
        (folder / name).write_bytes(program)
    return folder


def under(stored: Path, name: str, code: str, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = f"{INSTALL}\ninstall(open({str(stored / name)!r}, 'rb').read())\n{code}"
    command = [sys.executable, "-c", script, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


def run_under(stored: Path, name: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return under(stored, name, "os.execvp(sys.argv[1], sys.argv[1:])", *argv, cwd=cwd)


@x86_only
@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("call(101, 0, 0, 0, 0)", "EPERM"),  # ptrace
        ("call(165, 0, 0, 0, 0, 0)", "EPERM"),  # mount
        ("call(428, 0, 0, 0)", "EPERM"),  # open_tree
        ("call(430, 0, 0)", "EPERM"),  # fsopen
        ("call(272, 0x10000000)", "EPERM"),  # unshare
        ("call(308, 0, 0)", "EPERM"),  # setns
        ("call(56, 0x10000000 | 17, 0, 0, 0, 0)", "EPERM"),  # clone with a user namespace
        ("call(56, 1 << 32 | 0x10000000 | 17, 0, 0, 0, 0)", "EPERM"),
        ("call(435, 0, 0)", "ENOSYS"),  # clone3
        ("call(437, 0, 0, 0, 0)", "ENOSYS"),  # openat2
        ("call(425, 1, 0)", "ENOSYS"),  # io_uring_setup
        ("call(250, 0, 0, 0, 0, 0)", "EPERM"),  # keyctl
        ("call(248, 0, 0, 0, 0, 0)", "EPERM"),  # add_key
        ("call(321, 0, 0, 0)", "EPERM"),  # bpf
        ("call(298, 0, 0, 0, 0, 0)", "EPERM"),  # perf_event_open
        ("call(323, 0)", "EPERM"),  # userfaultfd
        ("call(310, 1, 0, 0, 0, 0, 0)", "EPERM"),  # process_vm_readv
        ("call(304, 0, 0, 0)", "EPERM"),  # open_by_handle_at
        ("call(303, 0, 0, 0, 0, 0)", "EPERM"),  # name_to_handle_at
        ("call(438, 0, 0, 0)", "EPERM"),  # pidfd_getfd
        ("call(246, 0, 0, 0, 0)", "EPERM"),  # kexec_load
        ("call(175, 0, 0, 0)", "EPERM"),  # init_module
        ("call(999)", "ENOSYS"),
        ("call(41, 40, 1, 0)", "EPERM"),  # AF_VSOCK
        ("call(41, 1 << 32 | 40, 1, 0)", "EPERM"),  # the same to the kernel, which reads an int
        ("call(41, 17, 3, 0)", "EPERM"),  # AF_PACKET
        ("call(41, 38, 5, 0)", "EPERM"),  # AF_ALG
        ("call(41, 16, 3, 9)", "EPERM"),  # NETLINK_AUDIT
        ("call(41, 2, 1, 132)", "EPERM"),  # SCTP
        ("call(41, 2, 3, 1)", "EPERM"),  # a raw socket
        ("call(41, 1, 1, 0)", "EPERM"),  # AF_UNIX
        ("call(41, 2, 1 | 0o2000000, 0)", "ok"),
        ("call(41, 10, 2, 17)", "ok"),
        ("call(41, 16, 3, 0)", "ok"),
        ("call(53, 1, 1, 0, ctypes.addressof(ctypes.create_string_buffer(8)))", "ok"),  # socketpair(AF_UNIX)
        ("call(53, 30, 1, 0, ctypes.addressof(ctypes.create_string_buffer(8)))", "EPERM"),  # AF_TIPC
        ("call(16, 0, 0x5412, 0)", "EPERM"),  # TIOCSTI
        ("call(16, 0, 1 << 32 | 0x5412, 0)", "EPERM"),
        ("call(16, 0, 0x541C, 0)", "EPERM"),  # TIOCLINUX
        ("call(135, 0xffffffff)", "ok"),  # personality, the query
        ("call(135, 0x0040000)", "EPERM"),  # ADDR_NO_RANDOMIZE
        ("call(90, 0, 0o4755)", "EPERM"),  # chmod
        ("call(91, 99, 0o2755)", "EPERM"),  # fchmod
        ("call(268, 99, 0, 0o4755)", "EPERM"),  # fchmodat
        ("call(452, 99, 0, 0o4755, 0)", "EPERM"),  # fchmodat2
        ("call(452, 99, 0, 0o755, 0)", "EBADF EFAULT ENOSYS"),
        ("call(83, 0, 0o4755)", "EPERM"),  # mkdir
        ("call(85, 0, 0o4755)", "EPERM"),  # creat
        ("call(2, 0, 0o101, 0o4755)", "EPERM"),  # open(O_CREAT)
        ("call(257, 99, 0, 0o101, 0o4755)", "EPERM"),  # openat(O_CREAT)
        ("call(257, 99, 0, 0o20200002, 0o4755)", "EPERM"),  # openat(O_TMPFILE)
        ("call(257, 99, 0, 0, 0o4755)", "EFAULT"),  # without O_CREAT the mode means nothing
        ("call(133, 0, 0o020600, 0x103)", "EPERM"),  # mknod of a device
        ("call(133, 0, 0o010600, 0)", "EFAULT"),  # mknod of a fifo
        ("call(162)", "EPERM"),  # sync
    ],
)
def test_the_kernel_refuses_what_attacks_want(stored: Path, probe: str, said: str) -> None:
    result = under(stored, "default", f"print({probe})")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in said.split()


@x86_only
def test_i386_and_x32_calls_kill_the_process(stored: Path) -> None:
    i386 = (
        "import mmap\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20; int 0x80; ret
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()\n"
    )
    for code in (i386, f"call({X32_BIT} | 39)"):
        assert under(stored, "default", code).returncode == -31  # SIGSYS


@x86_only
def test_unix_sockets_are_reopened_by_their_file_alone(stored: Path) -> None:
    assert under(stored, "unix-sockets", "print(call(41, 1, 1, 0), call(41, 40, 1, 0))").stdout == "ok EPERM\n"


ORDINARY_PYTHON = """
import asyncio, multiprocessing, socket, sqlite3, ssl, subprocess, tempfile, threading, os, shutil
async def main():
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    await reader.read()
    writer.close()
    server.close()
if __name__ == "__main__":
    asyncio.run(main())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
    thread = threading.Thread(target=print); thread.start(); thread.join()
    assert subprocess.check_output(["sh", "-c", "echo x | cat"]) == b"x\\n"
    folder = tempfile.mkdtemp()
    sqlite3.connect(folder + "/db").execute("create table t (x)")
    os.chmod(folder + "/db", 0o755); shutil.copy2(folder + "/db", folder + "/copy"); shutil.rmtree(folder)
    ssl.create_default_context(); socket.if_nameindex()
"""


def test_ordinary_python_runs(stored: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORDINARY_PYTHON)
    result = run_under(stored, "default", "python3", str(script), cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_ordinary_shell_and_git_run(stored: Path, tmp_path: Path) -> None:
    script = (
        "set -e; mkdir -p a/b; echo 1 > a/b/c; cp -a a d; mv d e; ln -s e f; find . -type f | xargs cat | sort;"
        "tar cf t.tar e; tar tf t.tar; mkfifo p; touch -d yesterday e; sed -i s/1/2/ a/b/c; date; (exit 0) & wait;"
        "git init -q r; cd r; git -c user.name=a -c user.email=b commit -q --allow-empty -m x; git log; git status;"
        "git diff; git gc -q"
    )
    result = run_under(stored, "default", "bash", "-c", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this host; the image has one")
def test_ordinary_node_runs(stored: Path, tmp_path: Path) -> None:
    script = (
        "const fs = require('fs'), cp = require('child_process'), net = require('net'), os = require('os');"
        "fs.writeFileSync('x', '1'); fs.promises.readFile('x'); cp.execSync('true'); os.networkInterfaces();"
        "new (require('worker_threads').Worker)('1', {eval: true});"
        "const s = net.createServer().listen(0, '127.0.0.1', () => net.connect(s.address().port, '127.0.0.1',"
        " function () { this.destroy(); s.close(); }));"
    )
    result = run_under(stored, "default", "node", "-e", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


WORKER_PROBE = """
import asyncio, json, socket, threading
async def main():
    await asyncio.to_thread(json.dumps, {})
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(a, [b"x"], [0]); socket.recv_fds(b, 9, 1)
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0); server.close()
asyncio.run(main())
print(call(59, 0, 0, 0), call(101, 0, 0, 0, 0), call(165, 0, 0, 0, 0, 0), call(272, 0), call(308, 0, 0), call(250, 0),
      call(321, 0, 0, 0), call(41, 17, 3, 0), call(56, 0x10000011, 0, 0, 0, 0), call(435, 0, 0),
      call(16, 0, 1 << 32 | 0x5412, 0))
"""


@x86_only
def test_the_worker_works_and_an_exploit_in_it_does_not(stored: Path) -> None:
    result = under(stored, "worker", WORKER_PROBE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["EPERM"] * 7 + ["EAFNOSUPPORT", "EPERM", "ENOSYS", "EPERM"]


# ---- cache and engines' JSON ----------------------------------------------------------------------------------------


def test_a_filter_is_compiled_once_and_a_torn_file_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = filters.stored_filter(DEFAULT, tmp_path)
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes()[:-8])
    assert filters.stored_filter(DEFAULT, tmp_path) == first
    path.write_bytes(b"")
    assert filters.stored_filter(DEFAULT, tmp_path) == first
    monkeypatch.setattr(filters, "compile_filter", lambda _: pytest.fail("compiled again"))
    assert filters.stored_filter(replace(DEFAULT, name="another"), tmp_path) == first
    assert len(list(tmp_path.iterdir())) == 1


def test_compiling_is_repeatable_and_names_of_other_architectures_are_dropped() -> None:
    assert filters.compile_filter(DEFAULT) == PROGRAMS["default"][1]
    assert filters.compile_filter(with_rule("mmap2", "socketcall")) == PROGRAMS["default"][1]


def test_oci_form_says_the_same() -> None:
    form = filters.oci_seccomp(DEFAULT)
    assert form["defaultAction"] == "SCMP_ACT_ERRNO"
    assert form["defaultErrnoRet"] == errno.EPERM
    assert form["architectures"] == [filters.ARCHITECTURES[platform.machine()]]
    rules = form["syscalls"]
    assert isinstance(rules, list)
    assert len(rules) == len(DEFAULT.rules)
    clone = next(rule for rule in rules if rule["names"] == ["clone"])
    assert clone["args"] == [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x7E020000, "valueTwo": 0}]
    openat2 = next(rule for rule in rules if rule["names"] == ["openat2"])
    assert (openat2["action"], openat2["errnoRet"]) == ("SCMP_ACT_ERRNO", errno.ENOSYS)


def test_libseccomp_is_there() -> None:
    assert ctypes.CDLL("libseccomp.so.2").seccomp_api_get() >= 3
