/*
 * Output: from a job's pipe into its spool by splice, without a buffer of our own.
 *
 * Past the limit: `kill` ends the job, `drop-oldest` punches a hole at the head (aligned, so that offsets stay true and
 * no reader sees zeros), `block` stops reading until a reader has trimmed.
 */
#include "serve.h"
#include <poll.h>
#include <sys/ioctl.h>

static uint64_t minimum(uint64_t a, uint64_t b) { return a < b ? a : b; }

static void punch(struct stream *stream, uint64_t upto)
{
    upto -= upto % stream->block;
    if (upto > stream->punched &&
        !fallocate(stream->spool, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)stream->punched,
                   (off_t)(upto - stream->punched)))
        stream->punched = upto;
}

void stream_close(struct stream *stream)
{
    if (stream->source.fd < 0)
        return;
    if (!stream->waiting)
        unwatch(stream->job->server, &stream->source);
    (void)close(steal_fd(&stream->source.fd));
    stream->owed = 0;
    stream->waiting = false;
}

/* How much may be moved now; 0 with *ret_over: the limit has been reached. */
static uint64_t room(struct stream *stream, bool *ret_over)
{
    const struct job *job = stream->job;
    uint64_t chunk = 1 << 20;
    *ret_over = false;
    if (!job->limit || job->over == OVER_DROP)
        return chunk;
    uint64_t used = job->over == OVER_KILL ? job->streams[0].end + job->streams[1].end : stream->end - stream->trimmed;
    if (used < job->limit)
        return minimum(chunk, job->limit - used);
    *ret_over = true;
    return 0;
}

/* The file system refuses: the bytes are counted and thrown away, the job runs on. */
static ssize_t discard(struct stream *stream, size_t size)
{
    static char bin[65536];
    ssize_t got = read(stream->source.fd, bin, minimum(size, sizeof bin));
    if (got > 0)
        stream->lost += (uint64_t)got;
    return got;
}

static ssize_t paid(struct stream *stream, ssize_t moved)
{
    if (moved < 0)
        return -errno;
    stream->owed -= minimum(stream->owed, (uint64_t)moved);
    return moved;
}

/* Where no hole can be punched, the spool must not grow for ever: it keeps its beginning. */
static bool holes_fail(const struct stream *stream)
{
    const struct job *job = stream->job;
    return job->limit && job->over == OVER_DROP &&
           stream->end - stream->punched > 2 * job->limit + 2 * (uint64_t)stream->block + (2 << 20);
}

/* One portion. Positive: moved or thrown away; 0: end of file; negative: -EAGAIN, -EDQUOT (limit). */
static ssize_t move(struct stream *stream)
{
    bool over;
    uint64_t size = room(stream, &over);
    if (holes_fail(stream))
        return paid(stream, discard(stream, size));
    if (over) {
        struct pollfd pipe = {stream->source.fd, POLLIN, 0};
        (void)poll(&pipe, 1, 0);
        return pipe.revents & POLLIN ? -EDQUOT : pipe.revents & POLLHUP ? 0 : -EAGAIN;
    }
    off_t at = (off_t)stream->end;
    ssize_t moved = splice(stream->source.fd, NULL, stream->spool, &at, size, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    if (moved >= 0)
        stream->end += (uint64_t)moved;
    else if (errno == EAGAIN || errno == EINTR || (moved = discard(stream, size)) < 0)
        return -errno;
    (void)paid(stream, moved);
    const struct job *job = stream->job;
    if (job->limit && job->over == OVER_DROP && stream->end - stream->punched > job->limit + job->limit / 8)
        punch(stream, stream->end - job->limit);
    return moved;
}

static void overrun(struct stream *stream)
{
    struct job *job = stream->job;
    if (job->over == OVER_KILL) {
        job->overran = true;
        job_kill(job, SIGKILL);
        stream_close(&job->streams[0]);
        stream_close(&job->streams[1]);
    } else if (!stream->waiting) {
        stream->waiting = true;
        unwatch(job->server, &stream->source);
    }
}

static void turn(struct stream *stream)
{
    ssize_t moved = move(stream);
    if (moved == -EAGAIN)
        stream->owed = 0; /* a job can read its own pipe, so what was counted may be gone */
    if (moved == -EDQUOT)
        overrun(stream);
    else if (moved == 0 || (moved < 0 && moved != -EAGAIN && moved != -EINTR))
        stream_close(stream);
}

void stream_readable(struct source *source, uint32_t events)
{
    struct stream *stream = (struct stream *)source;
    (void)events;
    turn(stream);
    job_progress(stream->job);
}

/* After the job's end: what was in the pipe then, unless the reader has to make room first. */
void stream_drain(struct stream *stream)
{
    int waiting = 0;
    if (stream->source.fd < 0)
        return;
    if (!ioctl(stream->source.fd, FIONREAD, &waiting) && waiting > 0)
        stream->owed = (uint64_t)waiting;
    while (stream->source.fd >= 0 && stream->owed && !stream->waiting)
        turn(stream);
}

void stream_trim(struct stream *stream, uint64_t offset)
{
    if (stream->spool < 0)
        return;
    if (offset > stream->end)
        offset = stream->end;
    if (offset > stream->trimmed)
        stream->trimmed = offset;
    punch(stream, stream->trimmed);
    if (stream->waiting && stream->end - stream->trimmed < stream->job->limit) {
        stream->waiting = false;
        if (watch(stream->job->server, &stream->source, EPOLLIN))
            stream_close(stream);
    }
}
