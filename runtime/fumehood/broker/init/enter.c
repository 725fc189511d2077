/* Acts once inside a box's namespaces on the broker's behalf, and ends.
 *
 * Theory. No Python thread ever enters a box's mount namespace: a lazy import there would run the box's code as
 * root. This program is static, parses only the broker's argument list, and resolves every path inside the box with
 * openat2(RESOLVE_IN_ROOT | NO_SYMLINKS | NO_MAGICLINKS), so that an image's symlinks lead nowhere.
 *
 *   enter PIDFD [user] OPERATION...
 *     max NAME VALUE     writes /proc/sys/user/NAME for the box's user namespace (only with `user`)
 *     up                 brings `lo` up in the box's network namespace
 *     umount PATH        detaches what is mounted there
 *     move FD PATH       attaches the detached mount FD there, at a directory
 *     cover FD PATH      attaches the detached mount FD over a plain file; where there is none (a symlink is none), says
 *                        "absent PATH" on stderr and goes on
 *
 * PIDFD is an open pidfd of the box's PID 1: setns(2) through it cannot reach a reused pid. Ends 0, or says on
 * stderr which operation failed and ends 1. Sources: setns(2), move_mount(2), openat2(2), namespaces(7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void say(const char *text) {
  if (write(2, text, strlen(text)) < 0) _exit(2);
}

static void fail(const char *operation, const char *what) {
  int number = errno;
  char digits[12];
  int at = sizeof digits;
  digits[--at] = 0;
  do digits[--at] = (char)('0' + number % 10); while ((number /= 10) && at);
  say(operation);
  say(" ");
  say(what);
  say(": errno ");
  say(digits + at);
  say("\n");
  _exit(1);
}

static int open_in_box(int root, const char *path, unsigned long long directory) {
  struct open_how how = {.flags = O_PATH | O_CLOEXEC | directory,
                         .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
  return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  int pidfd = atoi(argv[1]), next = 2, user = !strcmp(argv[2], "user");
  next += user;
  int sysctl = open("/proc/sys/user", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (user && setns(pidfd, CLONE_NEWUSER)) fail("setns", "user");
  int root = -1;
  while (next < argc) {
    const char *operation = argv[next++];
    if (!strcmp(operation, "max") && next + 1 < argc && user && root < 0) {
      int fd = openat(sysctl, argv[next], O_WRONLY | O_CLOEXEC);
      if (fd < 0 || write(fd, argv[next + 1], strlen(argv[next + 1])) < 0) fail(operation, argv[next]);
      close(fd);
      next += 2;
      continue;
    }
    if (!strcmp(operation, "up")) {
      if (setns(pidfd, CLONE_NEWNET)) fail("setns", "net");
      struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
      int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
      if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request)) fail(operation, "lo");
      close(fd);
      continue;
    }
    if (root < 0) {
      if (setns(pidfd, CLONE_NEWNS)) fail("setns", "mnt");
      root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
      if (root < 0) fail("open", "/");
    }
    if (!strcmp(operation, "umount") && next < argc) {
      const char *path = argv[next++];
      int fd = open_in_box(root, path, 0);
      if (fd < 0) fail(operation, path);
      close(fd);
      /* The path was just shown to hold no symlink, and nothing of the box runs yet that could plant one. */
      if (chdir("/") || umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW)) fail(operation, path);
      continue;
    }
    if (!strcmp(operation, "move") && next + 1 < argc) {
      int mount_fd = atoi(argv[next]);
      const char *path = argv[next + 1];
      int fd = open_in_box(root, path, O_DIRECTORY);
      if (fd < 0) fail(operation, path);
      if (syscall(SYS_move_mount, mount_fd, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)) fail(operation, path);
      close(fd);
      next += 2;
      continue;
    }
    if (!strcmp(operation, "cover") && next + 1 < argc) {
      int mount_fd = atoi(argv[next]);
      const char *path = argv[next + 1];
      int fd = open_in_box(root, path, 0);
      struct stat found;
      if (fd >= 0 && fstat(fd, &found)) fail(operation, path);
      if (fd < 0 || !S_ISREG(found.st_mode)) {
        if (fd < 0 && errno != ENOENT && errno != ELOOP && errno != ENOTDIR) fail(operation, path);
        say("absent ");
        say(path);
        say("\n");
      } else if (syscall(SYS_move_mount, mount_fd, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)) {
        fail(operation, path);
      }
      if (fd >= 0) close(fd);
      next += 2;
      continue;
    }
    errno = EINVAL;
    fail("unknown operation", operation);
  }
  return 0;
}
