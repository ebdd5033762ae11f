/*
 * The lowest layer of pid 1: one epoll, one handler for each source, no allocation while output flows.
 *
 * The layers are loop, output, jobs, spawn, requests, serve. Each calls only those before it. A lower layer reports to a higher
 * one by a mark: a `later` runs at the end of the turn, and `serve` looks at the marks of the jobs once a turn. With a call
 * upward instead, a handler could free what its caller still holds.
 */
#pragma once
#include <sys/epoll.h>
#include "util.h"

/* What epoll returns. Every kind of source begins with one. */
struct source {
    void (*handle)(struct source *source, uint32_t events);
    int fd;
};
/* Work for the end of this turn. It runs once, however often it was requested. */
struct later {
    void (*run)(struct later *later);
    struct later *next;
    bool due;
};
struct loop {
    int epoll;
    struct later *first_later, **last_later;
    bool freed; /* a descriptor was closed in this turn; accept4 may succeed again */
};

int loop_open(struct loop *loop);
/* Handles one event, then the work that was put off. False: `timeout_ms` passed without an event. */
bool loop_turn(struct loop *loop, int timeout_ms);
void run_later(struct loop *loop, struct later *later);

int watch(struct loop *loop, struct source *source, uint32_t events);
void rewatch(struct loop *loop, struct source *source, uint32_t events);
void unwatch(struct loop *loop, struct source *source);
void close_source(struct loop *loop, struct source *source); /* idempotent */
void close_here(struct loop *loop, int *fd);                 /* idempotent */
