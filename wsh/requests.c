/*
 * Requests: each is one packet, has a row in the table, and gets one packet as its reply.
 *
 * Every client is untrusted. A bad request gets an `error`; a packet that cannot be parsed ends the connection. The replies to
 * `wait`, `spawn` and `stop` come later; until then the client is suspended, and its next packets stay in the socket's queue.
 */
#include "replies.h"
#include <linux/mount.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { MAX_WORDS = 1 << 16, LIST_BYTES = 60000 };

struct request {
    struct client *client;
    const char **words;
    int count, fds[MAX_FDS], fd_count;
};

static void client_drop(struct client *client)
{
    struct service *service = client->service;
    for (struct client **at = &service->clients; *at; at = &(*at)->next)
        if (*at == client) {
            *at = client->next;
            break;
        }
    close_source(&service->loop, &client->source);
    free(client);
    service->client_count--;
}

static void client_resume(struct client *client)
{
    rewatch(&client->service->loop, &client->source, EPOLLIN);
}

/* The reply comes later. Until then only the client's disconnect is watched. */
static void suspend(struct client *client)
{
    rewatch(&client->service->loop, &client->source, EPOLLRDHUP);
}

/* True: the reply was sent. */
static bool answer(struct client *client)
{
    const struct job *job = client->waits_for;
    if (client->stopping) {
        if (client->service->jobs.stopping)
            return false;
        reply_ok(client);
    } else if (!job)
        return false;
    else if (client->spawning) {
        if (!job->execed && !job->failure.error && !job->gone)
            return false;
        if (job->execed)
            reply_started(client, job);
        else
            reply_error(client, job->failure.error, job->failure.what);
    } else {
        if (!job->recorded && !job->gone)
            return false;
        reply_ending(client, job);
    }
    client->waits_for = NULL;
    client->spawning = client->stopping = false;
    return true;
}

void answer_waiting(struct service *service)
{
    for (struct client *client = service->clients; client; client = client->next)
        if (answer(client))
            client_resume(client);
    /* Also when the client has gone: no other process may get the master of the terminal. */
    for (struct job *job = service->jobs.first; job; job = job->next)
        if (job->execed)
            close_here(&service->loop, &job->handover);
    jobs_free_gone(&service->jobs);
    service->jobs.news = false;
}

static int take_fd(struct request *r, int *at)
{
    return *at < r->fd_count ? r->fds[(*at)++] : -1;
}

static bool spawn_word(struct spawn_request *s, struct request *r, const char *key, const char *value, int *fd_at)
{
    static const char *const io_names[] = {"spool", "direct", "terminal"};
    static const char *const over_names[] = {"kill", "drop-oldest", "block"};
    uint64_t number;
    if (!strcmp(key, "arg")) s->arguments[s->argument_count++] = value;
    else if (!strcmp(key, "env")) s->environment[s->environment_count++] = value;
    else if (!strcmp(key, "group")) s->groups[s->group_count++] = value;
    else if (!strcmp(key, "rlimit")) s->rlimits[s->rlimit_count++] = value;
    else if (!strcmp(key, "cwd")) s->cwd = value;
    else if (!strcmp(key, "uid")) return parse_number(value, UINT32_MAX - 1, &s->uid);
    else if (!strcmp(key, "gid")) return parse_number(value, UINT32_MAX - 1, &s->gid);
    else if (!strcmp(key, "limit")) return parse_number(value, INT64_MAX, &s->limit);
    else if (!strcmp(key, "rows")) return parse_number(value, 65535, &s->rows);
    else if (!strcmp(key, "cols")) return parse_number(value, 65535, &s->columns);
    else if (!strcmp(key, "umask")) {
        char *end;
        number = strtoul(value, &end, 8);
        s->mask = (mode_t)number;
        return *value && !*end && number <= 0777;
    } else if (!strcmp(key, "io")) {
        for (int i = 0; i < 3; i++)
            if (!strcmp(value, io_names[i]))
                return s->io = (enum io)i, true;
        return false;
    } else if (!strcmp(key, "over")) {
        for (int i = 0; i < 3; i++)
            if (!strcmp(value, over_names[i]))
                return s->over = (enum over)i, true;
        return false;
    } else if (!strcmp(key, "fd")) {
        int *slot = !strcmp(value, "stdin")    ? &s->stdin_fd
                    : !strcmp(value, "stdout") ? &s->stdout_fd
                    : !strcmp(value, "stderr") ? &s->stderr_fd
                    : !strcmp(value, "record") ? &s->record_fd
                                               : NULL;
        return slot && *slot < 0 && (*slot = take_fd(r, fd_at)) >= 0;
    } else
        return false;
    return true;
}

static void do_spawn(struct request *r)
{
    static const char *arguments[MAX_WORDS], *environment[MAX_WORDS], *groups[MAX_WORDS], *rlimits[MAX_WORDS];
    struct service *service = r->client->service;
    struct spawn_request s = {.id = r->words[1], .cwd = "/", .arguments = arguments, .environment = environment,
                              .groups = groups, .rlimits = rlimits, .mask = 022, .stdin_fd = -1, .stdout_fd = -1,
                              .stderr_fd = -1, .record_fd = -1};
    int fd_at = 0;
    size_t length = strlen(s.id);
    if (!length || length >= JOB_NAME || r->count % 2) {
        reply_error(r->client, EINVAL, "spawn: expected a JOB of 1 to 63 bytes, then KEY VALUE pairs");
        return;
    }
    for (int i = 2; i + 1 < r->count; i += 2)
        if (!spawn_word(&s, r, r->words[i], r->words[i + 1], &fd_at)) {
            char text[256];
            (void)snprintf(text, sizeof text, "spawn: unknown key or bad value: %.60s=%.120s", r->words[i], r->words[i + 1]);
            reply_error(r->client, EINVAL, text);
            return;
        }
    struct job *job = job_find(&service->jobs, s.id);
    if (job) {
        char words[64];
        reply(r->client, words, (size_t)snprintf(words, sizeof words, "ok%cagain%c%d", 0, 0, job->pid) + 1, -1);
        return;
    }
    arguments[s.argument_count] = environment[s.environment_count] = NULL;
    const char *refusal = spawn_refusal(&s);
    if (refusal) {
        reply_error(r->client, EINVAL, refusal);
        return;
    }
    int error = service->jobs.stopping ? -EBUSY : spawn(&service->jobs, service->inside, &s, &job);
    if (error) {
        reply_error(r->client, -error, "spawn");
        return;
    }
    r->client->waits_for = job;
    r->client->spawning = true;
    suspend(r->client);
}

static struct job *named(struct request *r)
{
    struct job *job = job_find(&r->client->service->jobs, r->words[1]);
    if (!job)
        reply_error(r->client, ENOENT, r->words[1]);
    return job;
}

static void do_ping(struct request *r) { reply_ok(r->client); }

static void do_wait(struct request *r)
{
    struct job *job = named(r);
    if (job && job->recorded)
        reply_ending(r->client, job);
    else if (job) {
        r->client->waits_for = job;
        suspend(r->client);
    }
}

static void do_list(struct request *r)
{
    static char words[LIST_BYTES + 256];
    size_t size = 3;
    memcpy(words, "ok", 3);
    const char *last = NULL;
    for (struct job *job = r->client->service->jobs.first; job; job = job->next) {
        if (r->count == 2 && strcmp(job->id, r->words[1]) <= 0)
            continue;
        if (size > LIST_BYTES - 256) {
            size += (size_t)snprintf(words + size, 256, "more%c%s", 0, last) + 1;
            break;
        }
        char state[64];
        int length = describe(job, state, sizeof state - 8, ':');
        if (job->recorded && job->record >= 0)
            strcpy(state + length, "+open");
        last = job->id;
        size += (size_t)snprintf(words + size, 256, "job%c%s%c%s%c%d", 0, job->id, 0, state, 0, job->pid) + 1;
    }
    reply(r->client, words, size, -1);
}

static void do_signal(struct request *r)
{
    uint64_t number;
    struct job *job = named(r);
    if (!job)
        return;
    if (!parse_number(r->words[2], 64, &number) || !number)
        reply_error(r->client, EINVAL, "signal: expected a number from 1 to 64");
    else if (job->reaped || kill(-job->pid, (int)number))
        reply_error(r->client, ESRCH, job->id);
    else
        reply_ok(r->client);
}

static void do_winsize(struct request *r)
{
    uint64_t rows, columns;
    struct job *job = named(r);
    if (!job)
        return;
    if (job->terminal < 0 || !parse_number(r->words[2], 65535, &rows) || !parse_number(r->words[3], 65535, &columns)) {
        reply_error(r->client, EINVAL, "winsize: expected a job with a terminal, then ROWS COLS up to 65535");
        return;
    }
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    if (ioctl(job->terminal, TIOCSWINSZ, &size))
        reply_error(r->client, errno, "winsize");
    else
        reply_ok(r->client);
}

static void do_trim(struct request *r)
{
    uint64_t offset;
    struct job *job = named(r);
    if (!job)
        return;
    bool out = !strcmp(r->words[2], "stdout");
    if ((!out && strcmp(r->words[2], "stderr")) || !parse_number(r->words[3], INT64_MAX, &offset)) {
        reply_error(r->client, EINVAL, "trim: expected stdout or stderr, then an offset in bytes");
        return;
    }
    job_trim(job, out ? 0 : 1, offset);
    reply_ok(r->client);
}

static void do_forget(struct request *r)
{
    struct job *job = named(r);
    if (!job)
        return;
    if (!job->recorded) {
        reply_error(r->client, EBUSY, job->id);
        return;
    }
    job_drop(job);
    reply_ok(r->client);
}

static void do_stop(struct request *r)
{
    uint64_t grace_ms;
    if (!parse_number(r->words[1], 86400000, &grace_ms)) {
        reply_error(r->client, EINVAL, "stop: expected a grace of 0 to 86400000 ms");
        return;
    }
    r->client->stopping = true;
    suspend(r->client);
    jobs_stop(&r->client->service->jobs, grace_ms);
}

static void do_attach(struct request *r)
{
    const char *path = r->words[1];
    scoped_fd int target = sys_openat2(r->client->service->inside->root_fd, path, O_PATH, 0,
                                       RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
    if (r->fd_count != 1)
        reply_error(r->client, EINVAL, "attach: expected one descriptor, a detached mount");
    else if (target < 0 || sys_move_mount(r->fds[0], "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
        reply_error(r->client, errno, path);
    else
        reply_ok(r->client);
}

static const struct {
    const char *name;
    int least, most; /* number of words, with the name */
    void (*handle)(struct request *);
} requests[] = {
    {"ping", 1, 1, do_ping},       {"spawn", 2, MAX_WORDS, do_spawn}, {"wait", 2, 2, do_wait},
    {"list", 1, 2, do_list},       {"signal", 3, 3, do_signal},       {"winsize", 4, 4, do_winsize},
    {"trim", 4, 4, do_trim},       {"forget", 2, 2, do_forget},       {"stop", 2, 2, do_stop},
    {"attach", 2, 2, do_attach},
};

static void dispatch(struct request *r)
{
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        if (!strcmp(requests[i].name, r->words[0])) {
            if (r->count < requests[i].least || r->count > requests[i].most)
                reply_error(r->client, EINVAL, "wrong number of words for this request");
            else
                requests[i].handle(r);
            return;
        }
    char text[128];
    (void)snprintf(text, sizeof text, "unknown request %.60s", r->words[0]);
    reply_error(r->client, EINVAL, text);
}

/* False: the packet is no request, or the client has gone. */
static bool receive(struct client *client, struct request *r)
{
    static const char *words[MAX_WORDS];
    char control[CMSG_SPACE(sizeof(int) * MAX_FDS)];
    struct iovec part = {client->service->packet, PACKET};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(client->source.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    *r = (struct request){.client = client, .words = words};
    if (size < 0)
        return errno == EAGAIN || errno == EINTR;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
            r->fd_count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(r->fds, CMSG_DATA(header), sizeof(int) * (size_t)r->fd_count);
        }
    const char *text = client->service->packet;
    if (size == 0 || text[size - 1] || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        return false;
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(text + at) + 1) {
        if (r->count == MAX_WORDS)
            return false;
        words[r->count++] = text + at;
    }
    return true;
}

void client_ready(struct source *source, uint32_t events)
{
    struct client *client = (struct client *)source;
    struct request r;
    bool busy = client->waits_for || client->stopping;
    if (busy || !(events & EPOLLIN)) {
        client_drop(client);
        return;
    }
    bool good = receive(client, &r);
    if (good && r.count)
        dispatch(&r);
    for (int i = 0; i < r.fd_count; i++)
        (void)close(r.fds[i]);
    if (!good)
        client_drop(client);
}
