/*
 * The launcher makes the child, maps its ids, builds its tree, hands over to it and exits.
 *
 *   launcher (host's root)                          child (pid 1 of the container)
 *   own mount namespace; opens what the plan names
 *   becomes the id that is not mapped; clones  ──►  waits
 *   becomes root again; writes the maps        ──►  IPv6 off; acknowledges
 *   builds the tree; prints `pid N`; waits `go`
 *   "enter"                                    ──►  cgroups, namespaces, pivot, mounts, network, limits
 *   prints `ready`; exits 0                    ◄──  "ready", or one line that says what failed
 *
 * Only root of the host may map ids and mount layers, and an idmapped mount needs the user namespace to exist. So pid 1 is
 * cloned first, and waits until the launcher has built its tree. It is cloned under the one id that is not mapped inside:
 * otherwise root inside could set its resource limits (prlimit).
 * If the launcher dies before "ready", its channel closes, and that ends the child.
 */
#include "launch.h"
#include <grp.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void become(uid_t id)
{
    if (setgroups(0, NULL) || setresgid(id, id, id) || setresuid(id, id, id))
        die("setresuid", id ? "the container's id that is not mapped inside" : "back to root");
}

static pid_t clone_child(void)
{
    struct clone_args args = {
        .flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
        .exit_signal = SIGCHLD,
    };
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        die("clone", "user, pid, net, ipc and uts namespaces");
    return pid;
}

static void write_map(pid_t pid, const char *which, const struct plan *plan)
{
    char path[64], line[64];
    (void)snprintf(path, sizeof path, "/proc/%d/%s", pid, which);
    int size = snprintf(line, sizeof line, "0 %u %u\n", plan->id_base, plan->id_count - 1);
    scoped_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write_all(fd, line, (size_t)size))
        die("write", path);
}

static void print(const char *text)
{
    if (write_all(1, text, strlen(text)))
        die("write", "standard output");
}

static void wait_go(void)
{
    char line[4] = "";
    size_t got = 0;
    while (got < 3) {
        ssize_t n = read(0, line + got, 3 - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = ECANCELED;
            die("launch", "standard input ended before `go`");
        }
        got += (size_t)n;
    }
    if (memcmp(line, "go\n", 3)) {
        errno = EINVAL;
        die("launch", "expected the line `go` on standard input");
    }
}

/* Waits for a message of the child. Anything but `expected` is the line of the child's die(): it is printed, and the launch
 * ends. `watch_input`: the end of standard input ends the launch too. */
static void await_child(int channel, const char *expected, bool watch_input)
{
    char text[1024];
    struct pollfd both[] = {{channel, POLLIN, 0}, {watch_input ? 0 : -1, POLLIN, 0}};
    while (poll(both, 2, -1) < 0 || !both[0].revents)
        if (both[1].revents && read(0, text, sizeof text) <= 0) {
            errno = ECANCELED;
            die("launch", "standard input ended before `ready`");
        }
    ssize_t got = recv(channel, text, sizeof text - 1, 0);
    if (got == (ssize_t)strlen(expected) && !memcmp(text, expected, (size_t)got))
        return;
    if (got > 0)
        (void)write_all(2, text, (size_t)got);
    else {
        errno = ECHILD;
        die("launch", "the container's pid 1 ended and reported no error");
    }
    tree_undo();
    _exit(1);
}

static void signal_child(int channel, const char *word)
{
    if (send(channel, word, strlen(word), MSG_NOSIGNAL) < 0)
        die("launch", "the container's pid 1 has ended");
}

/* Resets what jobs would inherit from the manager: niceness, protection from the OOM killer, ignored signals. */
static void shed_inheritance(void)
{
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number <= 64; number++)
        (void)signal(number, SIG_DFL);
    (void)setpriority(PRIO_PROCESS, 0, 0);
    /* A process may always raise it. Without CAP_SYS_RESOURCE it cannot be lowered; it then stays, which protects no process. */
    scoped_fd int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (score < 0 || (write_all(score, "0", 1) && errno != EACCES))
        die("reset", "oom_score_adj");
}

int launch(const struct plan *plan)
{
    struct opened opened;
    int channel[2];
    shed_inheritance();
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        die("unshare", "mount namespace (needs root)");
    tree_open(plan, &opened);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel))
        die("socketpair", "launch");
    /* Keep the capabilities through the change of id. */
    if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP))
        die("prctl", "PR_SET_SECUREBITS");
    become(plan->id_base + plan->id_count - 1);
    pid_t pid = clone_child();
    if (pid == 0) {
        (void)close(channel[0]);
        inside_main(plan, &opened, channel[1]);
    }
    (void)close(channel[1]);
    become(0);
    write_map(pid, "uid_map", plan);
    write_map(pid, "gid_map", plan);
    signal_child(channel[0], "mapped");
    await_child(channel[0], "mapped", false);
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    scoped_fd int userns = open(path, O_RDONLY | O_CLOEXEC);
    if (userns < 0)
        die("open", path);
    tree_build(plan, &opened, userns);
    (void)snprintf(path, sizeof path, "pid %d\n", pid);
    print(path);
    if (plan->veth)
        wait_go();
    signal_child(channel[0], "enter");
    await_child(channel[0], "ready", plan->veth);
    print("ready\n");
    return 0;
}
