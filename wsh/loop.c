/* The loop that only turns: signals, new clients, the timer of a stop. */
#include "serve.h"
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

enum { RETRY_MS = 500 }; /* what was short may have been the host's, whose relief nobody tells us */

/* A descriptor has been closed: one that accept4 had not may be had now. */
void accept_again(struct server *server)
{
    if (server->listener_off && server->client_count < MAX_CLIENTS && !watch(server, &server->listener, EPOLLIN))
        server->listener_off = false;
}

int watch(struct server *server, struct source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(server->epoll, EPOLL_CTL_ADD, source->fd, &event) ? -errno : 0;
}

void rewatch(struct server *server, struct source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    (void)epoll_ctl(server->epoll, EPOLL_CTL_MOD, source->fd, &event);
}

void unwatch(struct server *server, struct source *source)
{
    if (source->fd >= 0)
        (void)epoll_ctl(server->epoll, EPOLL_CTL_DEL, source->fd, NULL);
}

/* Served are those outside of this pid namespace (their pid shows as 0) whose user is not mapped here: the host's. */
static bool is_host(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.pid == 0 && peer.uid == 65534;
}

static void greet(struct server *server, struct client *client)
{
    char words[512] = "wshd\0001";
    size_t size = 7, length = strlen(server->inside->plan->handle) + 1;
    if (length > sizeof words - size)
        length = sizeof words - size;
    memcpy(words + size, server->inside->plan->handle, length);
    words[sizeof words - 1] = 0;
    reply(client, words, size + length, -1);
}

static void listener_ready(struct source *source, uint32_t events)
{
    struct server *server = (struct server *)((char *)source - offsetof(struct server, listener));
    (void)events;
    struct client *client = server->client_count < MAX_CLIENTS ? calloc(1, sizeof *client) : NULL;
    int fd = client ? accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
    if (fd < 0) {
        /* Full: out of epoll until a client leaves, else this would spin. */
        if (!client || errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            unwatch(server, source);
            server->listener_off = true;
        }
        free(client);
        return;
    }
    *client = (struct client){.source = {client_ready, fd}, .server = server, .next = server->clients};
    if (!is_host(fd) || watch(server, &client->source, EPOLLIN)) {
        (void)close(fd);
        free(client);
        return;
    }
    server->clients = client;
    server->client_count++;
    greet(server, client);
}

static void signals_ready(struct source *source, uint32_t events)
{
    struct server *server = (struct server *)((char *)source - offsetof(struct server, signals));
    struct signalfd_siginfo info;
    (void)events;
    while (read(source->fd, &info, sizeof info) == sizeof info)
        ;
    jobs_reap(server); /* SIGCHLD coalesces: reap until there is nothing */
}

static void set_timer(struct server *server, uint64_t first_ms, uint64_t period_ms)
{
    struct itimerspec when = {
        .it_value = {(time_t)(first_ms / 1000), (long)(first_ms % 1000) * 1000000},
        .it_interval = {(time_t)(period_ms / 1000), (long)(period_ms % 1000) * 1000000},
    };
    (void)timerfd_settime(server->timer.fd, 0, &when, NULL);
}

static void timer_ready(struct source *source, uint32_t events)
{
    struct server *server = (struct server *)((char *)source - offsetof(struct server, timer));
    uint64_t expirations;
    (void)events;
    (void)!read(source->fd, &expirations, sizeof expirations);
    if (!server->stopping)
        return;
    if (!server->killing) {
        server->killing = true;
        set_timer(server, 50, 50); /* again, for what a fork bomb made in between */
    }
    (void)kill(-1, SIGKILL);
    jobs_reap(server);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void stop_begin(struct server *server, uint64_t grace_ms)
{
    uint64_t at_ms = now_ms() + grace_ms;
    bool first = !server->stopping;
    server->stopping = true;
    if (first) {
        (void)kill(-1, SIGTERM);
        (void)kill(-1, SIGCONT);
        /* A login shell ignores TERM and would hold up the stop for all of its grace; it leaves when its terminal ends. */
        for (struct job *job = server->jobs; job; job = job->next)
            if (job->master >= 0)
                job_kill(job, SIGHUP);
    }
    /* A second stop can only make it sooner. */
    if (grace_ms && !server->killing && (first || at_ms < server->kill_at_ms)) {
        server->kill_at_ms = at_ms;
        set_timer(server, grace_ms, 0);
    } else if (!grace_ms) {
        server->killing = true;
        (void)kill(-1, SIGKILL);
        set_timer(server, 50, 50);
    }
    jobs_reap(server);
}

void stop_finish(struct server *server)
{
    server->stopping = server->killing = false;
    set_timer(server, 0, 0);
    for (struct client *client = server->clients; client; client = client->next)
        if (client->stopping) {
            client->stopping = false;
            reply(client, "ok", 3, -1);
            client_resume(client);
        }
}

_Noreturn void serve(struct inside *inside)
{
    static struct server server;
    sigset_t blocked;
    server = (struct server){.inside = inside, .listener = {listener_ready, inside->listener}};
    (void)sigemptyset(&blocked);
    (void)sigaddset(&blocked, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &blocked, NULL);
    server.packet = malloc(PACKET);
    server.epoll = epoll_create1(EPOLL_CLOEXEC);
    server.signals = (struct source){signals_ready, signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK)};
    server.timer = (struct source){timer_ready, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
    if (!server.packet || watch(&server, &server.listener, EPOLLIN) || watch(&server, &server.signals, EPOLLIN) ||
        watch(&server, &server.timer, EPOLLIN))
        _exit(1); /* the last line that may end pid 1 */
    for (;;) {
        /* One event a turn: a handler may free what a second event of the same batch would point to. */
        struct epoll_event event;
        int ready = epoll_wait(server.epoll, &event, 1, server.listener_off ? RETRY_MS : -1);
        if (ready == 1) {
            struct source *source = event.data.ptr;
            source->handle(source, event.events);
        } else if (ready == 0)
            accept_again(&server);
    }
}
