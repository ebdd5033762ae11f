/*
 * The event loop: waits for one event, calls its handler, and then runs the work that was put off until the end of the turn.
 *
 * A turn handles one event only, because a handler may close the source that a second event of the same batch would point to.
 */
#include "loop.h"

int loop_open(struct loop *loop)
{
    *loop = (struct loop){.epoll = epoll_create1(EPOLL_CLOEXEC)};
    loop->last_later = &loop->first_later;
    return loop->epoll < 0 ? -errno : 0;
}

void run_later(struct loop *loop, struct later *later)
{
    if (later->due)
        return;
    later->due = true;
    later->next = NULL;
    *loop->last_later = later;
    loop->last_later = &later->next;
}

bool loop_turn(struct loop *loop, int timeout_ms)
{
    struct epoll_event event;
    int ready = epoll_wait(loop->epoll, &event, 1, timeout_ms);
    if (ready == 1) {
        struct source *source = event.data.ptr;
        source->handle(source, event.events);
    }
    while (loop->first_later) {
        struct later *later = loop->first_later;
        if (!(loop->first_later = later->next))
            loop->last_later = &loop->first_later;
        later->due = false;
        later->run(later);
    }
    return ready != 0;
}

int watch(struct loop *loop, struct source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, source->fd, &event) ? -errno : 0;
}

void rewatch(struct loop *loop, struct source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    (void)epoll_ctl(loop->epoll, EPOLL_CTL_MOD, source->fd, &event);
}

void unwatch(struct loop *loop, struct source *source)
{
    if (source->fd >= 0)
        (void)epoll_ctl(loop->epoll, EPOLL_CTL_DEL, source->fd, NULL);
}

void close_source(struct loop *loop, struct source *source)
{
    unwatch(loop, source);
    close_here(loop, &source->fd);
}

void close_here(struct loop *loop, int *fd)
{
    if (*fd >= 0)
        loop->freed = true;
    close_fd(fd);
}
