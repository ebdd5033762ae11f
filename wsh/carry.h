/* Bytes between the caller's descriptors and those of a job, both ways, without ever waiting on one alone (wsh only). */
#pragma once
#include "util.h"

enum { UNREACHABLE = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };
enum { CARRY_BYTES = 16384, CARRY_OUT = 4096 /* PIPE_BUF: a pipe that has room takes it without blocking */ };

enum ours { OURS_NONE, OURS_FROM, OURS_TO };
struct channel {
    int from, to;   /* -1: that end is done */
    enum ours ours; /* the end of a pipe that we have made: closed at the end, which the job then sees */
    int64_t left; /* how much may still be read; negative: no bound yet */
    size_t at, size;
    char bytes[CARRY_BYTES];
};

/* What a channel waits for: POLLIN on `from` while it is empty, else POLLOUT on `to`. */
struct pollfd;
void channel_ask(const struct channel *channel, struct pollfd *ret_poll);
/* One read and one write at most. */
void channel_turn(struct channel *channel, short events);
static inline bool channel_done(const struct channel *channel)
{
    return channel->from < 0 && channel->at == channel->size;
}

/* All of a job: its three pipes, or its terminal. `inside` are the job's ends. */
struct streams {
    struct channel channels[3];
    int count, inside[3];
};
/* Pipes that belong to the job's user; `sock` is connected to its wshd. fail()s. */
void streams_make(struct streams *streams, int sock, const char *uid);
void streams_terminal(struct streams *streams, int master);
/* Nothing more goes in, and of what comes out only what is there now: a process that was left behind may never go. */
void streams_bound(struct streams *streams, bool terminal);

_Noreturn void fail(int status, const char *what, const char *why); /* wsh.c: gives the terminal back, says it, exits */
