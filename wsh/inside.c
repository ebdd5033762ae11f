/*
 * The child's half of the launch. The order of the steps matters:
 *   cgroup   joins the leaf `job`, makes its cgroup namespace there and goes back to `init`, so that a job sees its cgroup as `/`
 *   mounts   makes a mount namespace owned by the user namespace, in which all mounts of the launcher are locked
 *   pivot    comes before proc and sysfs are mounted, so that a stack whose /sys is a link cannot lead them to a path of the host
 *   masks    come before the old root is unmounted, because a new proc can be mounted only while the old one is visible
 *   limits   sets the bounding set, no_new_privs and undumpable; then calls listen itself, so that SO_PEERCRED names pid 1
 */
#include "launch.h"
#include "serve.h"
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define HARD (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

static const char *const masked[] = {
    "/proc/acpi",        "/proc/asound",     "/proc/interrupts",  "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",      "/proc/timer_list", "/proc/timer_stats",
    "/sys/firmware",     "/sys/devices/virtual/powercap",
    "/sys/devices/virtual/block", /* shows the files behind loop devices: host paths with the handle of every container */
};
static const char *const read_only[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};

/* `max`: the kernel counts the terminals of all containers together, so one container could use them up. */
static const char *const pts_options[][2] = {
    {"newinstance", NULL}, {"ptmxmode", "0666"}, {"mode", "0620"}, {"gid", "5"}, {"max", "64"}, {NULL, NULL}};
static const char *const empty_options[][2] = {{"mode", "0"}, {"size", "4k"}, {NULL, NULL}};

static void expect(int channel, const char *word)
{
    char text[16];
    ssize_t got = recv(channel, text, sizeof text, 0);
    if (got != (ssize_t)strlen(word) || memcmp(text, word, (size_t)got))
        _exit(1); /* the launcher has ended, and has reported the reason */
}

static void answer(int channel, const char *word)
{
    if (send(channel, word, strlen(word), MSG_NOSIGNAL) < 0)
        _exit(1);
}

static void join(const int *files, const char *const *paths, int count)
{
    for (int i = 0; i < count; i++)
        if (write_all(files[i], "0", 1))
            die("join cgroup", paths[i]);
}

static void enter_cgroups(const struct plan *plan, const struct opened *opened)
{
    join(opened->cgroup_job, plan->cgroup_job, plan->cgroup_job_count);
    if (unshare(CLONE_NEWCGROUP))
        die("unshare", "cgroup namespace");
    join(opened->cgroup_init, plan->cgroup_init, plan->cgroup_init_count);
    for (int i = 0; i < plan->cgroup_init_count; i++)
        (void)close(opened->cgroup_init[i]);
}

static int below(int root, const char *path)
{
    int fd = sys_openat2(root, path, O_PATH, 0,
                         RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
    if (fd < 0 && errno != ENOENT)
        die("open in the container", path);
    return fd;
}

static void mount_at(int root, const char *type, const char *path, const char *const options[][2], unsigned attributes)
{
    scoped_fd int target = below(root, path);
    if (target < 0)
        die("mount point", path);
    scoped_fd int mounted = mount_new(type, options, attributes);
    mount_onto(mounted, target, path);
}

static void mask(int root, const char *path)
{
    scoped_fd int target = below(root, path);
    struct stat what;
    if (target < 0)
        return; /* this kernel does not have it */
    if (fstat(target, &what))
        die("mask", path);
    if (S_ISDIR(what.st_mode)) {
        scoped_fd int empty = mount_new("tmpfs", empty_options, HARD | MOUNT_ATTR_RDONLY);
        mount_onto(empty, target, path);
        return;
    }
    scoped_fd int null = below(root, "/dev/null");
    scoped_fd int clone = sys_open_tree(null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (clone < 0)
        die("mask", path);
    mount_onto(clone, target, path);
}

static void make_read_only(int root, const char *path)
{
    scoped_fd int target = below(root, path);
    if (target < 0)
        return;
    scoped_fd int clone = sys_open_tree(target, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
    struct idmap_attr attr = {.set = HARD | MOUNT_ATTR_RDONLY};
    if (clone < 0 || sys_mount_setattr(clone, AT_RECURSIVE, &attr))
        die("read-only", path);
    mount_onto(clone, target, path);
}

/* Changes the working directory to the new root and returns a descriptor of it. */
static int enter_tree(const struct plan *plan)
{
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        die("unshare", "mount namespace");
    if (mount(STAGE_ROOT, STAGE_ROOT, NULL, MS_BIND | MS_REC, NULL))
        die("bind mount", STAGE_ROOT);
    scoped_fd int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (old < 0 || chdir(STAGE_ROOT) || syscall(SYS_pivot_root, ".", "."))
        die("pivot_root", STAGE_ROOT);
    /* pivot_root(2): the old root is stacked on the new one; "." may be either, "/" is the new one. */
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0 || chdir("/"))
        die("open", "new root");
    mount_at(root, "proc", "/proc", NULL, HARD);
    mount_at(root, "sysfs", "/sys", NULL, HARD | MOUNT_ATTR_RDONLY);
    cgroup_show(root, plan);
    mount_at(root, "devpts", "/dev/pts", pts_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    mount_at(root, "mqueue", "/dev/mqueue", NULL, HARD);
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
        mask(root, masked[i]);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
        make_read_only(root, read_only[i]);
    if (fchdir(old) || umount2(".", MNT_DETACH) || chdir("/"))
        die("unmount", "old root");
    return root;
}

static void give_up_rights(const struct plan *plan)
{
    for (int capability = 0; capability <= 63; capability++)
        if (!(plan->bounding >> capability & 1) && prctl(PR_CAPBSET_READ, capability) == 1 &&
            prctl(PR_CAPBSET_DROP, capability))
            die("prctl", "PR_CAPBSET_DROP");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0) ||
        prctl(PR_SET_NAME, "wshd"))
        die("prctl", "no_new_privs, undumpable");
    struct sock_fprog program_of_init = {plan->init_filter.count, (struct sock_filter *)plan->init_filter.code};
    if (plan->init_filter.count && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program_of_init))
        die("seccomp", "pid 1");
}

static void silence(void)
{
    scoped_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
        die("open", "/dev/null");
#ifdef __SANITIZE_ADDRESS__
    /* a sanitizer's report about pid 1 goes to a file in the container's root, where the tests look */
    scoped_fd int report = open("/sanitizer-report", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (report < 0 || dup2(report, 2) < 0)
        die("open", "/sanitizer-report");
#endif
}

/* Closes every descriptor that the plan does not name: layers, uppers, sources, and any that the manager leaked. */
static void close_the_rest(const int *keep, int count)
{
    unsigned from = 3;
    for (;;) {
        unsigned next = ~0U;
        for (int i = 0; i < count; i++)
            if ((unsigned)keep[i] >= from && (unsigned)keep[i] < next)
                next = (unsigned)keep[i];
        if (next > from)
            (void)syscall(SYS_close_range, from, next == ~0U ? ~0U : next - 1, 0);
        if (next == ~0U)
            return;
        from = next + 1;
    }
}

static void raise_nofile(struct inside *inside)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        die("getrlimit", "nofile");
    inside->nofile_soft = limit.rlim_cur;
    inside->nofile_hard = limit.rlim_max;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

_Noreturn void inside_main(const struct plan *plan, const struct opened *opened, int channel)
{
    die_fd = channel;
    on_die = NULL;
    expect(channel, "mapped");
    (void)setfsgid(0);
    (void)setfsuid(0);
    net_settings(plan);
    answer(channel, "mapped");
    expect(channel, "enter");
    (void)setsid();
    (void)umask(022);
    struct inside inside = {.plan = plan, .listener = opened->listener, .cgroup_job = opened->cgroup_job};
    enter_cgroups(plan, opened);
    inside.root_fd = enter_tree(plan);
    inside.pts_fd = below(inside.root_fd, "/dev/pts");
    if (sethostname(plan->hostname, strlen(plan->hostname)))
        die("sethostname", plan->hostname);
    net_configure(plan);
    raise_nofile(&inside);
    give_up_rights(plan);
    if (listen(inside.listener, SOMAXCONN))
        die("listen", plan->socket);
    int keep[MAX_CGROUPS + 4] = {inside.listener, inside.root_fd, inside.pts_fd, channel};
    memcpy(keep + 4, opened->cgroup_job, sizeof(int) * (size_t)plan->cgroup_job_count);
    silence();
    close_the_rest(keep, 4 + plan->cgroup_job_count);
    answer(channel, "ready");
    (void)close(channel);
    serve(&inside);
}
