/*
 * A job's process between fork and exec. The first step that fails is named on the error pipe, and the process exits. seccomp is
 * the last step before exec, since the filter may forbid the system calls of the others.
 */
#include "child.h"
#include <grp.h>
#include <signal.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>

static void exec_search(char *const *arguments, char *const *environment)
{
    const char *path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";
    if (strchr(arguments[0], '/')) {
        (void)execve(arguments[0], arguments, environment);
        return;
    }
    for (char *const *word = environment; *word; word++)
        if (!strncmp(*word, "PATH=", 5))
            path = *word + 5;
    int error = ENOENT;
    for (const char *at = path;; at++) {
        char file[4096];
        size_t length = strcspn(at, ":");
        if (snprintf(file, sizeof file, "%.*s/%s", (int)(length ? length : 1), length ? at : ".", arguments[0]) <
            (int)sizeof file) {
            (void)execve(file, arguments, environment);
            if (errno != ENOENT && errno != ENOTDIR)
                error = errno;
        }
        at += length;
        if (!*at)
            break;
    }
    errno = error;
}

static void exec_shell(const char *chosen, char *const *environment)
{
    const char *const shells[] = {chosen, "/bin/bash", "/bin/sh"};
    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++)
        exec_search((char *const[]){(char *)shells[i], NULL}, environment);
}

static int set_capabilities(uint64_t mask)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{(uint32_t)mask, (uint32_t)mask, 0},
                                             {(uint32_t)(mask >> 32), (uint32_t)(mask >> 32), 0}};
    return (int)syscall(SYS_capset, &header, data);
}

static int place_descriptors(const struct child *child)
{
    int high[3];
    for (int i = 0; i < 3; i++)
        if ((high[i] = fcntl(child->fds[i], F_DUPFD_CLOEXEC, 3)) < 0)
            return -1;
    for (int i = 0; i < 3; i++)
        if (dup2(high[i], i) < 0)
            return -1;
    return 0;
}

static int join_cgroups(const struct inside *inside)
{
    for (int i = 0; i < inside->plan->cgroup_job_count; i++)
        if (write_all(inside->cgroup_job[i], "0", 1))
            return -1;
    return 0;
}

static int become_user(const struct child *child)
{
    const struct spawn_request *r = child->request;
    const struct plan *plan = child->inside->plan;
    /* raw system calls: libc's wrappers would try to change all threads */
    if (syscall(SYS_setgroups, r->group_count, child->groups) || syscall(SYS_setresgid, r->gid, r->gid, r->gid) ||
        syscall(SYS_setresuid, r->uid, r->uid, r->uid))
        return -1;
    /* The memory is still a copy of pid 1's. The change of user has set its dumpable flag to fs.suid_dumpable, which may let every
     * process of the same user trace it (prctl(2)). */
    if (prctl(PR_SET_DUMPABLE, 0))
        return -1;
    return set_capabilities(r->uid == 0 ? plan->bounding & 0x1ffffffffffULL : 0);
}

static int confine(const struct child *child)
{
    const struct filter *filter = &child->inside->plan->job_filter;
    struct sock_fprog code = {filter->count, (struct sock_filter *)filter->code};
    return filter->count ? prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &code) : 0;
}

static int set_limits(const struct child *child)
{
    const struct inside *inside = child->inside;
    struct rlimit nofile = {inside->nofile_soft, inside->nofile_hard};
    if (setrlimit(RLIMIT_NOFILE, &nofile))
        return -1;
    for (int i = 0; i < child->limit_count; i++)
        if (setrlimit((unsigned)child->limits[i].resource, &child->limits[i].value))
            return -1;
    return 0;
}

_Noreturn void run_child(const struct child *child)
{
    const struct spawn_request *r = child->request;
    struct failure failure = {0};
    const char *step = "session";
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)umask(r->mask);
    if (setsid() < 0)
        goto failed;
    step = "cgroup";
    if (join_cgroups(child->inside))
        goto failed;
    step = "descriptors";
    if (place_descriptors(child) || (child->terminal && ioctl(0, TIOCSCTTY, 0)))
        goto failed;
    step = "limits";
    if (set_limits(child))
        goto failed;
    step = "user";
    if (become_user(child))
        goto failed;
    step = "cwd";
    if (chdir(r->cwd))
        goto failed;
    step = "seccomp";
    if (confine(child))
        goto failed;
    step = "exec";
    if (r->argument_count)
        exec_search((char *const *)r->arguments, (char *const *)r->environment);
    else
        exec_shell(child->inside->plan->shell, (char *const *)r->environment);
failed:
    failure.error = errno;
    strcpy(failure.what, step);
    (void)!write(child->error_fd, &failure, sizeof failure);
    _exit(127);
}
