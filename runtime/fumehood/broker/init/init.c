/* PID 1 of a box: waits for the broker, starts one tool held before its first instruction, reaps, reports, stays.
 *
 * Theory. The engine starts this program with no capability and no_new_privs. It makes itself non-dumpable (a child
 * of the same uid could otherwise rewrite it through /proc/1/mem), installs the profile's seccomp filter on itself so
 * that everything in the box inherits it, and says READY. On START it forks the tool, which reports HELD with its
 * credentials and waits until the broker has read back from the host what the kernel really applied; on GO it
 * executes. Asked to PROVE before that, the held tool tries system calls that the broker names and shows the filter that init
 * installed, for brokers that the kernel does not show it to; asked to CHECK, it tries what a fence must stop. When the tool's first process ends, its status is sent, everything else in the box is killed, and after the last
 * child is reaped QUIET is sent. Init then waits for END, so that the cgroup still exists when the host reads it.
 * The end of the control socket at any time ends init, and with it the PID namespace.
 *
 * It never becomes the tool, never parses anything but the broker's messages, and links no NSS, locale or dlopen.
 *
 * Messages are single SEQPACKET datagrams; the first byte tells the kind (see protocol.py, which mirrors this).
 * Sources: pid_namespaces(7), prctl(2), seccomp(2), close_range(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 192 * 1024, STRINGS_MAX = 16384, CONTROL = 3, TRIES_MAX = 64 };

static unsigned char message[MESSAGE_BYTES];
static char *strings[STRINGS_MAX + 2];
static pid_t tool;
static int go_pipe = -1;
/* 'B', then the program as it was handed to the kernel. */
static struct {
  char pad[sizeof(struct sock_filter) - 1], kind;
  struct sock_filter instructions[BPF_MAXINSNS];
} installed = {.kind = 'B'};
static uint32_t installed_count;
/* One system call to try: number and arguments. A record of the gate's pipe, which a `go` is too. */
struct try {
  int64_t number;
  uint64_t arguments[4];
};
enum { GO = -1, SHOW = -2, FENCE = -3 };

static void report(char kind, int32_t a, int32_t b) {
  unsigned char out[9];
  out[0] = (unsigned char)kind;
  memcpy(out + 1, &a, 4);
  memcpy(out + 5, &b, 4);
  if (send(CONTROL, out, sizeof out, MSG_NOSIGNAL) < 0) _exit(1);
}

/* Tells the broker which step failed, then ends the box: half a box is never left running. */
static void die(int32_t step) {
  report('!', step, errno);
  _exit(1);
}

static uint32_t word_at(size_t offset) {
  uint32_t value;
  memcpy(&value, message + offset, 4);
  return value;
}

/* FRAME: u32 open_files, u32 instructions, then the filter itself. */
static void take_frame(size_t length) {
  if (length < 9) die(1);
  struct rlimit none = {0, 0}, files = {word_at(1), word_at(1)};
  if (setrlimit(RLIMIT_CORE, &none) || setrlimit(RLIMIT_NOFILE, &files)) die(2);
  uint32_t count = word_at(5);
  if (count == 0 || length != 9 + (size_t)count * sizeof(struct sock_filter)) die(3);
  if (count > BPF_MAXINSNS || installed_count) die(3);
  installed_count = count;
  memcpy(installed.instructions, message + 9, count * sizeof(struct sock_filter));
  struct sock_fprog program = {(unsigned short)count, installed.instructions};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die(4);
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) die(5);
  report('R', 0, 0);
}

/* The errno that stopped a connection, or 0 when something was there: whoever answers, or holds on without a word. */
static int reaches(const void *address, socklen_t size, int kind, const void *question, size_t length) {
  const struct timeval patience = {1, 0};
  unsigned char answer[512];
  int fd = socket(((const struct sockaddr *)address)->sa_family, kind | SOCK_CLOEXEC, 0), wrong = 0;
  if (fd < 0) return errno;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  if (connect(fd, address, size)) wrong = errno;
  else if (length && send(fd, question, length, MSG_NOSIGNAL) < 0) wrong = errno;
  else {
    ssize_t got = recv(fd, answer, sizeof answer, 0);
    if (got < 0) wrong = errno == EAGAIN && kind == SOCK_STREAM ? 0 : errno;
    else if (kind == SOCK_STREAM) wrong = got ? 0 : ECONNRESET; /* a gate that is shut takes it, and ends it */
    else if (got > 3 && (answer[3] & 15)) wrong = ENOENT; /* DNS: no such name, or refused */
  }
  close(fd);
  return wrong;
}

static int makes(int family, int kind, int protocol) {
  int fd = socket(family, kind | SOCK_CLOEXEC, protocol), wrong = fd < 0 ? errno : 0;
  if (fd >= 0) close(fd);
  return wrong;
}

/* CHECK: what must not be reached from here (fencing.py mirrors the order). */
static void check_fence(void) {
  static const unsigned char question[] = "\x66\x68\1\0\0\1\0\0\0\0\0\0\5fence\7invalid\0\0\1\0\1";
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(443), .sin_addr.s_addr = htonl(0x01010101)};
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(443), .sin6_addr.s6_addr = {0x26, 6, 0x47, 0, 0x47, [14] = 0x11, [15] = 0x11}};
  struct sockaddr_un engine = {.sun_family = AF_UNIX, .sun_path = "/var/run/docker.sock"};
  report('C', 0, reaches(&four, sizeof four, SOCK_STREAM, 0, 0));
  report('C', 1, reaches(&six, sizeof six, SOCK_STREAM, 0, 0));
  four.sin_port = six.sin6_port = htons(80);
  four.sin_addr.s_addr = htonl(0xA9FEA9FE);
  six.sin6_addr = (struct in6_addr){.s6_addr = {0xFD, 0, 0x0E, 0xC2, [14] = 2, [15] = 0x54}};
  report('C', 2, reaches(&four, sizeof four, SOCK_STREAM, 0, 0));
  report('C', 3, reaches(&six, sizeof six, SOCK_STREAM, 0, 0));
  four.sin_port = htons(53);
  four.sin_addr.s_addr = htonl(0xC0000235);
  report('C', 4, reaches(&four, sizeof four, SOCK_DGRAM, question, sizeof question - 1));
  report('C', 5, reaches(&engine, sizeof engine, SOCK_STREAM, 0, 0));
  report('C', 6, makes(AF_INET, SOCK_RAW, IPPROTO_ICMP));
  report('C', 7, makes(AF_PACKET, SOCK_RAW, 0));
}

/* The tool's side of START, up to its first instruction. */
static void become_tool(char **argv, char **env, const int streams[3], const int gate[2]) {
  sigset_t nothing;
  sigemptyset(&nothing);
  close(gate[1]); /* before the report: the broker lists our descriptors while we wait */
  report('H', 0, 0); /* the kernel adds our credentials: the broker learns the host's pid for us */
  for (;;) {
    struct try next;
    if (read(gate[0], &next, sizeof next) != sizeof next) _exit(125);
    if (next.number == GO) break;
    if (next.number == SHOW) {
      if (send(CONTROL, &installed.kind, 1 + installed_count * sizeof(struct sock_filter), MSG_NOSIGNAL) < 0) _exit(1);
      continue;
    }
    if (next.number == FENCE) {
      check_fence();
      continue;
    }
    const uint64_t *a = next.arguments;
    long result = syscall((long)next.number, a[0], a[1], a[2], a[3], 0L, 0L);
    report('T', (int32_t)next.number, result < 0 ? errno : 0);
  }
  setsid();
  umask(022);
  for (int i = 0; i < 3; i++)
    if (dup2(streams[i], i) < 0) die(20);
  /* CVE-2024-21626: no descriptor beyond the standard streams outlives the exec. */
  if (syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC)) die(21);
  if (chdir("/workspace")) die(22);
  for (int i = 1; i < NSIG; i++) signal(i, SIG_DFL);
  sigprocmask(SIG_SETMASK, &nothing, 0);
  execvpe(argv[0], argv, env);
  report('E', errno, 0);
  _exit(127);
}

/* START: u32 argc, u32 envc, then that many NUL-ended strings; three descriptors beside it. */
static void start(size_t length, const int *fds, int count) {
  if (count != 3 || length < 10 || length >= MESSAGE_BYTES || message[length - 1] != 0 || tool) die(10);
  uint32_t argc = word_at(1), envc = word_at(5), n = 0;
  if (argc == 0 || (uint64_t)argc + envc > STRINGS_MAX) die(11);
  char *next = (char *)message + 9, *end = (char *)message + length;
  char **argv = strings, **env = strings + argc + 1;
  for (; n < argc + envc; n++) {
    if (next >= end) die(12);
    if (n < argc) argv[n] = next;
    else env[n - argc] = next;
    next += strlen(next) + 1;
  }
  argv[argc] = 0;
  env[envc] = 0;
  if (next != end) die(12);
  int gate[2];
  if (pipe2(gate, O_CLOEXEC)) die(13);
  /* execvpe looks for PATH in the environment of the caller. */
  clearenv();
  for (uint32_t i = 0; i < envc; i++)
    if (!strncmp(env[i], "PATH=", 5)) putenv(env[i]);
  tool = fork();
  if (tool < 0) die(14);
  if (tool == 0) become_tool(argv, env, fds, gate);
  close(gate[0]);
  go_pipe = gate[1];
  for (int i = 0; i < 3; i++) close(fds[i]);
}

static int tell_tool(const struct try *record) {
  return go_pipe >= 0 && write(go_pipe, record, sizeof *record) == sizeof *record;
}

/* PROVE: u32 count, then that many calls for the held tool to try, before it shows the filter. */
static void prove(size_t length) {
  struct try record;
  uint32_t count = length < 5 ? TRIES_MAX + 1 : word_at(1);
  if (count > TRIES_MAX || length != 5 + count * sizeof record) die(35);
  for (uint32_t i = 0; i < count; i++) {
    memcpy(&record, message + 5 + i * sizeof record, sizeof record);
    if (record.number < 0 || !tell_tool(&record)) die(35);
  }
  record.number = SHOW;
  if (!tell_tool(&record)) die(35);
}

/* One datagram from the broker. */
static void take_message(void) {
  char control[CMSG_SPACE(8 * sizeof(int))];
  struct iovec io = {message, sizeof message};
  struct msghdr header = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t length = recvmsg(CONTROL, &header, MSG_CMSG_CLOEXEC);
  if (length <= 0) _exit(0); /* the broker is gone: so is the box */
  if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) die(30);
  int fds[8], count = 0;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || count) die(31);
    count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    if (count > 8) die(31);
    memcpy(fds, CMSG_DATA(c), (size_t)count * sizeof(int));
  }
  if (count && message[0] != 'S') die(32); /* no descriptor is accepted except those the plan expects */
  switch (message[0]) {
    case 'F': take_frame((size_t)length); break;
    case 'S': start((size_t)length, fds, count); break;
    case 'P': prove((size_t)length); break;
    case 'C':
      if (!tell_tool(&(struct try){.number = FENCE})) die(36);
      break;
    case 'G':
      if (!tell_tool(&(struct try){.number = GO})) die(33);
      close(go_pipe);
      go_pipe = -1;
      break;
    case 'K':
      kill(-1, SIGKILL);
      break;
    case 'E': _exit(0);
    default: die(34);
  }
}

/* Reaps what there is. Returns 0 when there are no children left. */
static int reap(void) {
  for (;;) {
    int status;
    pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid == 0) return 1;
    if (pid < 0) return 0;
    if (pid == tool) {
      tool = -1;
      report('X', WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
      kill(-1, SIGKILL); /* nothing outlives the call */
    }
  }
}

int main(int argc, char **argv) {
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) return 1;
  if (argc > 1) { /* an engine that passes no descriptor: connect once to the path given */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof address.sun_path) return 1;
    strcpy(address.sun_path, argv[1]);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) return 1;
    if (fd != CONTROL && (dup2(fd, CONTROL) < 0 || close(fd))) return 1;
  }
  if (fcntl(CONTROL, F_SETFD, FD_CLOEXEC)) return 1;
  syscall(SYS_close_range, CONTROL + 1, ~0U, 0);
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, 0);
  int signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) return 1;
  report('U', getpid(), 0); /* up */
  int quiet_sent = 0;
  struct pollfd waits[2] = {{.fd = CONTROL, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
  for (;;) {
    if (poll(waits, 2, -1) < 0) continue;
    if (waits[1].revents) {
      struct signalfd_siginfo got;
      while (read(signals, &got, sizeof got) == sizeof got)
        if (got.ssi_signo != SIGCHLD && tool > 0) kill(tool, (int)got.ssi_signo);
      if (!reap() && tool < 0 && !quiet_sent) {
        quiet_sent = 1;
        report('Q', 0, 0);
      }
    }
    if (waits[0].revents) take_message();
  }
}
