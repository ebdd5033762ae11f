/*
 * Starting a job. The parent prepares everything that can fail without a process. The child does the rest without branches, and
 * writes what failed to the error pipe. The pipe is closed by exec (O_CLOEXEC), so its end without a message means that exec has
 * succeeded. pid 1 never blocks on the child: the reply to `spawn` waits for the pipe in the loop.
 */
#include "child.h"
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

static const struct {
    const char *name;
    int resource;
} limit_names[] = {
    {"as", RLIMIT_AS},           {"core", RLIMIT_CORE},     {"cpu", RLIMIT_CPU},         {"data", RLIMIT_DATA},
    {"fsize", RLIMIT_FSIZE},     {"locks", RLIMIT_LOCKS},   {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE},
    {"nice", RLIMIT_NICE},       {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC},     {"rss", RLIMIT_RSS},
    {"rtprio", RLIMIT_RTPRIO},   {"sigpending", RLIMIT_SIGPENDING}, {"stack", RLIMIT_STACK},
};
_Static_assert(sizeof limit_names / sizeof *limit_names == LIMITS, "LIMITS is the number of names");

static bool limit_value(const char *word, rlim_t *ret_value)
{
    uint64_t value;
    if (!strcmp(word, "infinity"))
        return *ret_value = RLIM_INFINITY, true;
    return parse_number(word, UINT64_MAX - 1, &value) ? (*ret_value = (rlim_t)value, true) : false;
}

static void note_clamped(struct job *job, const char *name, rlim_t value)
{
    char text[64];
    int size = snprintf(text, sizeof text, "clamped%c%s%c%llu", 0, name, 0, (unsigned long long)value) + 1;
    if (job->clamped_size + (size_t)size <= sizeof job->clamped) {
        memcpy(job->clamped + job->clamped_size, text, (size_t)size);
        job->clamped_size += (size_t)size;
    }
}

/* NAME:SOFT:HARD. A value above pid 1's own hard limit needs CAP_SYS_RESOURCE, so it is clamped and the reply reports it. */
static int add_limit(struct child *child, struct job *job, const char *word)
{
    char copy[128], *save = NULL;
    if (strlen(word) >= sizeof copy)
        return -EINVAL;
    strcpy(copy, word);
    const char *name = strtok_r(copy, ":", &save), *soft = strtok_r(NULL, ":", &save), *hard = strtok_r(NULL, ":", &save);
    struct limit limit = {-1, {0, 0}};
    for (int i = 0; name && i < LIMITS; i++)
        if (!strcmp(limit_names[i].name, name))
            limit.resource = limit_names[i].resource;
    if (limit.resource < 0 || !soft || !hard || strtok_r(NULL, ":", &save) || !limit_value(soft, &limit.value.rlim_cur) ||
        !limit_value(hard, &limit.value.rlim_max) || child->limit_count == LIMITS)
        return -EINVAL;
    struct rlimit own;
    if (!getrlimit((unsigned)limit.resource, &own) && limit.value.rlim_max > own.rlim_max) {
        limit.value.rlim_max = own.rlim_max;
        note_clamped(job, name, own.rlim_max);
    }
    if (limit.value.rlim_cur > limit.value.rlim_max)
        limit.value.rlim_cur = limit.value.rlim_max;
    child->limits[child->limit_count++] = limit;
    return 0;
}

static void exec_spoke(struct source *source, uint32_t events)
{
    struct job *job = (struct job *)source;
    struct failure failure;
    (void)events;
    ssize_t got = read(source->fd, &failure, sizeof failure);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    close_source(job->jobs->loop, source);
    job->jobs->news = true;
    if (got == (ssize_t)sizeof failure) {
        failure.what[sizeof failure.what - 1] = 0;
        job->failure = failure;
        output_forgive(&job->output);
        job_drop(job);
        return;
    }
    job->execed = true;
    if (job->reaped)
        job_settle(job);
}

static int open_spool(struct job *job, int index, int spool, int *ret_write_end)
{
    struct stat what;
    int pipe_fds[2], flags = fcntl(spool, F_GETFL);
    if (spool < 0 || flags < 0 || fstat(spool, &what) || !S_ISREG(what.st_mode))
        return -EINVAL;
    /* splice(2) refuses a file in append mode; the offset is passed with each call */
    if (fcntl(spool, F_SETFL, flags & ~O_APPEND) || pipe2(pipe_fds, O_CLOEXEC))
        return -errno;
    *ret_write_end = pipe_fds[1];
    return stream_open(&job->output.streams[index], spool, pipe_fds[0]);
}

/* Must be a regular file: a pipe that nobody reads would block pid 1. */
static int open_record(struct job *job, int fd)
{
    struct stat what;
    if (fstat(fd, &what) || !S_ISREG(what.st_mode))
        return -EINVAL;
    job->record = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return job->record < 0 ? -errno : 0;
}

static int open_terminal(struct job *job, const struct inside *inside, const struct spawn_request *r, int *ret_slave)
{
    int zero = 0, master = openat(inside->pts_fd, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct winsize size = {.ws_row = (unsigned short)r->rows, .ws_col = (unsigned short)r->columns};
    if (master < 0)
        return -errno;
    job->handover = master;
    if (ioctl(master, TIOCSPTLCK, &zero))
        return -errno;
    int slave = *ret_slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0 || fchown(slave, (uid_t)r->uid, (gid_t)-1) || ioctl(slave, TIOCSWINSZ, &size))
        return -errno;
    job->terminal = fcntl(slave, F_DUPFD_CLOEXEC, 3);
    return 0;
}

static bool is_pipe(int fd)
{
    struct stat what;
    return !fstat(fd, &what) && S_ISFIFO(what.st_mode);
}

/* With a file or terminal of the host, the job could read, truncate and keep it. A sealed memfd is only bytes. */
static bool harmless(int fd, bool sealed_too)
{
    int seals = sealed_too ? fcntl(fd, F_GET_SEALS) : -1;
    return fd < 0 || is_pipe(fd) || (seals >= 0 && (seals & F_SEAL_WRITE));
}

const char *spawn_refusal(const struct spawn_request *request)
{
    const struct spawn_request *r = request;
    if (r->record_fd < 0 || (r->io == IO_SPOOL && (r->stdout_fd < 0 || r->stderr_fd < 0)))
        return "expected the descriptor record, and stdout and stderr for io spool";
    if (!harmless(r->stdin_fd, true))
        return "stdin must be a pipe or a sealed memfd";
    if (r->io == IO_DIRECT && !(harmless(r->stdout_fd, false) && harmless(r->stderr_fd, false)))
        return "stdout and stderr of a direct job must be pipes";
    return NULL;
}

static int prepare(struct job *job, struct child *child, int *made)
{
    const struct spawn_request *r = child->request;
    int error = 0;
    for (int i = 0; i < r->rlimit_count && !error; i++)
        error = add_limit(child, job, r->rlimits[i]);
    if (error || r->group_count > MAX_GROUPS)
        return -EINVAL;
    for (int i = 0; i < r->group_count; i++) {
        uint64_t group;
        if (!parse_number(r->groups[i], UINT32_MAX - 1, &group))
            return -EINVAL;
        child->groups[i] = (gid_t)group;
    }
    const int null = 0; /* pid 1's own /dev/null, open for reading and writing */
    child->fds[0] = r->stdin_fd >= 0 ? r->stdin_fd : null;
    child->fds[1] = r->stdout_fd >= 0 ? r->stdout_fd : null;
    child->fds[2] = r->stderr_fd >= 0 ? r->stderr_fd : null;
    if (r->io == IO_TERMINAL) {
        child->terminal = true;
        error = open_terminal(job, child->inside, r, &made[0]);
        child->fds[0] = child->fds[1] = child->fds[2] = made[0];
    } else if (r->io == IO_SPOOL) {
        for (int i = 0; i < 2 && !error; i++) {
            error = open_spool(job, i, i ? r->stderr_fd : r->stdout_fd, &made[i]);
            child->fds[1 + i] = made[i];
            /* otherwise the job could not open its own /dev/stdout */
            if (!error && fchown(made[i], (uid_t)r->uid, (gid_t)r->gid))
                error = -errno;
        }
    }
    return error;
}

/* Forks the process and watches its pipes. */
static int start(struct job *job, const struct child *child)
{
    struct loop *loop = job->jobs->loop;
    int error = watch(loop, &job->exec, EPOLLIN);
    if (error)
        return error;
    job->pid = fork();
    if (job->pid == 0)
        run_child(child);
    if (job->pid < 0)
        return -errno;
    for (int i = 0; i < 2 && !error; i++)
        error = stream_watch(&job->output.streams[i]);
    return error;
}

int spawn(struct jobs *jobs, const struct inside *inside, struct spawn_request *request, struct job **ret_job)
{
    int pipe_fds[2];
    scoped_fd int first = -1;
    scoped_fd int second = -1;
    int made[2] = {-1, -1};
    if (jobs->count >= MAX_JOBS || pipe2(pipe_fds, O_CLOEXEC))
        return jobs->count >= MAX_JOBS ? -EAGAIN : -errno;
    scoped_fd int error_end = pipe_fds[1];
    struct job *job = job_new(jobs);
    if (!job) {
        (void)close(pipe_fds[0]);
        return -ENOMEM;
    }
    job->exec = (struct source){exec_spoke, pipe_fds[0]};
    job->io = request->io;
    job->output.over = request->over;
    job->output.limit = request->limit;
    (void)snprintf(job->id, sizeof job->id, "%s", request->id);
    (void)fcntl(job->exec.fd, F_SETFL, O_NONBLOCK);
    struct child child = {.request = request, .inside = inside, .error_fd = error_end};
    int error = prepare(job, &child, made);
    first = made[0], second = made[1];
    if (!error)
        error = open_record(job, request->record_fd);
    if (!error)
        error = start(job, &child);
    if (error) {
        if (job->pid > 0)
            (void)kill(job->pid, SIGKILL);
        job_drop(job);
        return error;
    }
    job_add(job);
    *ret_job = job;
    return 0;
}
