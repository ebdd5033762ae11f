/*
 * The highest layer: accepts clients, handles SIGCHLD, and finishes each turn.
 *
 * The listener is removed from epoll when no descriptor or no place for a client is left, because it would be ready again at
 * once and the loop would spin. It is added again at the end of a turn in which a descriptor was closed, and every half second:
 * the shortage may have been the host's, and nothing reports its end to a container.
 */
#include "serve.h"
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include "requests.h"

enum { RETRY_MS = 500 };

struct server {
    struct service service;
    struct source listener, signals;
    bool listener_off;
};

/* Accepts only peers outside of this pid namespace (their pid shows as 0) whose user is not mapped here, so those of the host. */
static bool is_host(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.pid == 0 && peer.uid == 65534;
}

static void greet(struct client *client, const char *handle)
{
    char words[512] = "wshd\0001";
    size_t size = 7, length = strlen(handle) + 1;
    if (length > sizeof words - size)
        length = sizeof words - size;
    memcpy(words + size, handle, length);
    words[sizeof words - 1] = 0;
    reply(client, words, size + length, -1);
}

static void listener_ready(struct source *source, uint32_t events)
{
    struct server *server = (struct server *)((char *)source - offsetof(struct server, listener));
    struct service *service = &server->service;
    (void)events;
    struct client *client = service->client_count < MAX_CLIENTS ? calloc(1, sizeof *client) : NULL;
    int fd = client ? accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
    if (fd < 0) {
        if (!client || errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            unwatch(&service->loop, source);
            server->listener_off = true;
        }
        free(client);
        return;
    }
    *client = (struct client){.source = {client_ready, fd}, .service = service, .next = service->clients};
    if (!is_host(fd) || watch(&service->loop, &client->source, EPOLLIN)) {
        (void)close(fd);
        free(client);
        return;
    }
    service->clients = client;
    service->client_count++;
    greet(client, service->inside->plan->handle);
}

static void signals_ready(struct source *source, uint32_t events)
{
    struct server *server = (struct server *)((char *)source - offsetof(struct server, signals));
    struct signalfd_siginfo info;
    (void)events;
    while (read(source->fd, &info, sizeof info) == sizeof info)
        ;
    jobs_reap(&server->service.jobs);
}

static void accept_again(struct server *server)
{
    struct service *service = &server->service;
    if (service->client_count < MAX_CLIENTS && !watch(&service->loop, &server->listener, EPOLLIN))
        server->listener_off = false;
}

_Noreturn void serve(const struct inside *inside)
{
    static struct server server;
    struct service *service = &server.service;
    sigset_t blocked;
    (void)sigemptyset(&blocked);
    (void)sigaddset(&blocked, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &blocked, NULL);
    service->inside = inside;
    service->packet = malloc(PACKET);
    server.listener = (struct source){listener_ready, inside->listener};
    server.signals = (struct source){signals_ready, signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK)};
    if (!service->packet || loop_open(&service->loop) || jobs_open(&service->jobs, &service->loop) ||
        watch(&service->loop, &server.listener, EPOLLIN) || watch(&service->loop, &server.signals, EPOLLIN))
        _exit(1); /* after this point nothing may end pid 1 */
    for (;;) {
        bool passed = !loop_turn(&service->loop, server.listener_off ? RETRY_MS : -1);
        if (service->jobs.news)
            answer_waiting(service);
        if (server.listener_off && (passed || service->loop.freed))
            accept_again(&server);
        service->loop.freed = false;
    }
}
