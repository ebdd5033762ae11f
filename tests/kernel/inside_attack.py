"""A program that runs inside and tries forbidden system calls. It prints each call that succeeded."""

from __future__ import annotations

ATTACK = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int bad;
static char attributes_of_nothing[128];
#define REFUSED(call) \
    do { \
        if ((long)(call) >= 0) { \
            printf("%s\n", #call); \
            bad = 1; \
        } \
    } while (0)
/* a child that was made after all must not go on here */
#define NO_CHILD(call) \
    do { \
        long pid = (call); \
        if (pid == 0) \
            _exit(0); \
        REFUSED(pid); \
    } while (0)

static void reach_pid_1(void)
{
    char bytes[8];
    struct iovec here = {bytes, 8}, there = {(void *)0x400000, 8};
    struct rlimit limit = {3, 3};
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    for (int number = 1; number <= 64; number++)
        (void)kill(1, number);
    for (int kind = 0; kind < 16; kind++) {
        REFUSED(prlimit(1, kind, &limit, NULL));
        REFUSED(prlimit(1, kind, NULL, &limit));
    }
    REFUSED(ptrace(PTRACE_ATTACH, 1, 0, 0));
    REFUSED(ptrace(PTRACE_SEIZE, 1, 0, 0));
    REFUSED(process_vm_readv(1, &here, 1, &there, 1, 0));
    REFUSED(process_vm_writev(1, &here, 1, &there, 1, 0));
    REFUSED(setpriority(PRIO_PROCESS, 1, 19));
    REFUSED(sched_setaffinity(1, sizeof set, &set));
    REFUSED(syscall(SYS_migrate_pages, 1, 0, NULL, NULL));
    REFUSED(syscall(SYS_kcmp, 1, getpid(), 0, 0, 0));
    int pidfd = (int)syscall(SYS_pidfd_open, 1, 0);
    for (int fd = 0; fd < 20; fd++)
        REFUSED(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
    REFUSED(setns(pidfd, CLONE_NEWNET));
}

static void make_namespaces(void)
{
    static const int kinds[] = {CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET,
                                CLONE_NEWIPC,  CLONE_NEWUTS, CLONE_NEWCGROUP, 0x80 /* time */};
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct clone_args args = {.flags = (unsigned long long)kinds[i], .exit_signal = SIGCHLD};
        REFUSED(unshare(kinds[i]));
        NO_CHILD(syscall(SYS_clone3, &args, sizeof args));
        if (kinds[i] != 0x80) /* of clone, these bits are the exit signal */
            NO_CHILD(syscall(SYS_clone, (unsigned long)kinds[i] | SIGCHLD, 0, 0, 0, 0));
    }
    int self = open("/proc/self/ns/user", O_RDONLY);
    REFUSED(setns(self, 0));
}

static void change_mounts(void)
{
    REFUSED(mount("none", "/tmp", "tmpfs", 0, ""));
    REFUSED(mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    REFUSED(mount("/proc", "/tmp", NULL, MS_BIND | MS_REC, NULL));
    REFUSED(umount2("/proc/sys", MNT_DETACH));
    REFUSED(syscall(SYS_pivot_root, "/", "/tmp"));
    REFUSED(syscall(SYS_open_tree, AT_FDCWD, "/proc", 1));
    REFUSED(syscall(SYS_move_mount, AT_FDCWD, "/proc/sys", AT_FDCWD, "/tmp", 0));
    REFUSED(syscall(SYS_fsopen, "proc", 0));
    REFUSED(syscall(SYS_fspick, AT_FDCWD, "/sys", 0));
    char attributes[32] = {0};
    REFUSED(syscall(442 /* mount_setattr */, AT_FDCWD, "/sys", 0, attributes, sizeof attributes));
}

static void reach_the_host(void)
{
    struct file_handle {
        unsigned bytes;
        int type;
        unsigned char handle[128];
    } handle = {128, 0, {0}};
    int id, root = open("/", O_RDONLY | O_DIRECTORY);
    REFUSED(syscall(SYS_name_to_handle_at, root, ".", &handle, &id, 0));
    handle.bytes = 8;
    REFUSED(syscall(SYS_open_by_handle_at, root, &handle, O_RDONLY));
    REFUSED(syscall(SYS_keyctl, 0, -3, 1));
    REFUSED(syscall(SYS_add_key, "user", "k", "v", 1, -3));
    REFUSED(syscall(SYS_bpf, 0, attributes_of_nothing, 0));
    REFUSED(syscall(SYS_perf_event_open, attributes_of_nothing, 0, -1, -1, 0));
    REFUSED(syscall(SYS_userfaultfd, 0));
    REFUSED(syscall(SYS_io_uring_setup, 1, attributes_of_nothing));
    REFUSED(syscall(SYS_finit_module, root, "", 0));
    REFUSED(syscall(SYS_init_module, "", 0, ""));
    REFUSED(syscall(SYS_kexec_load, 0, 0, NULL, 0));
    REFUSED(syscall(SYS_syslog, 3, handle.handle, 100));
    REFUSED(syscall(SYS_acct, "/tmp/acct"));
    REFUSED(syscall(SYS_swapon, "/tmp/swap", 0));
    REFUSED(syscall(SYS_personality, 0x0040000));
    REFUSED(syscall(SYS_vhangup));
    REFUSED(sethostname("other", 5));
    REFUSED(setdomainname("other", 5));
    REFUSED(mknod("/mnt/rw/sda", 0060666, 0x800));
    REFUSED(setresuid(65535, 65535, 65535));
    REFUSED(socket(AF_PACKET, SOCK_RAW, 0));
    REFUSED(socket(AF_INET, SOCK_RAW, 1));
    REFUSED(socket(38 /* AF_ALG */, SOCK_SEQPACKET, 0));
    REFUSED(socket(40 /* AF_VSOCK */, SOCK_STREAM, 0));
    REFUSED(ioctl(0, TIOCSTI, "x"));
    REFUSED(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21 /* CAP_SYS_ADMIN */, 0, 0));
    REFUSED(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    REFUSED(setpriority(PRIO_PROCESS, 0, -5));
    int memory = open("/dev/mem", O_RDONLY);
    REFUSED(memory);
}

/* out of a chroot by a directory that is held: leads to the container's own root, where nothing is new */
static void leave_a_chroot(void)
{
    char target[8] = "";
    int out = open("/", O_RDONLY | O_DIRECTORY);
    if (mkdir("/tmp/jail", 0755) && errno != EEXIST)
        return;
    if (chroot("/tmp/jail") || fchdir(out))
        return;
    for (int i = 0; i < 64; i++)
        (void)!chdir("..");
    if (chroot(".") || readlink("/bin/sh", target, sizeof target - 1) < 0 || strcmp(target, "busybox"))
        printf("the root after a chroot is another one\n");
    REFUSED(open("/depot", O_PATH));
}

int main(void)
{
    reach_pid_1();
    make_namespaces();
    change_mounts();
    reach_the_host();
    leave_a_chroot();
    return bad;
}
"""
