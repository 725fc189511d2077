/* Puts itself into cgroups, then becomes the program named: join COUNT PROGRAM ARGUMENT...
 *
 * Theory. On cgroup v1 a process can be moved only by root or by someone of its own uid, and the init of a box has a uid that the
 * broker of an ordinary user has not. So the OCI runtime is put under the box's limits before it starts, what it starts is born
 * there, and the broker takes the runtime itself out again. Nobody but the process itself can do that without a race.
 *
 * The `cgroup.procs` files are the COUNT descriptors from 4 on, opened by the broker, whose rights count; 3 is passed through.
 * Sources: cgroups(7).
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *what) {
  if (write(2, what, strlen(what)) < 0) return 2;
  return 1;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  int count = atoi(argv[1]);
  for (int fd = 4; fd < 4 + count; fd++) {
    if (write(fd, "0", 1) != 1) return fail("join: the cgroup takes no process of ours\n");
    close(fd);
  }
  execv(argv[2], argv + 2);
  return fail("join: the program cannot be executed\n");
}
