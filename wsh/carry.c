/*
 * wsh makes the pipes of a job and copies bytes between them and the caller's descriptors.
 *
 * The caller shares its descriptors with its shell, so O_NONBLOCK is never set on them. Instead each write is at most PIPE_BUF
 * bytes, which does not block after poll has reported room. The job's ends belong to wsh.
 */
#include "carry.h"
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { LATE_BYTES = 64 * 4096 }; /* read from a terminal after the job's end; a terminal holds less */

static void finish(struct channel *channel)
{
    if (channel->ours != OURS_NONE)
        close_fd(channel->ours == OURS_FROM ? &channel->from : &channel->to);
    channel->from = channel->to = -1;
    channel->at = channel->size = 0;
}

void channel_ask(const struct channel *channel, struct pollfd *ret_poll)
{
    bool full = channel->at < channel->size;
    ret_poll->fd = full ? channel->to : channel->from;
    ret_poll->events = full ? POLLOUT : POLLIN;
    ret_poll->revents = 0;
}

static void take(struct channel *channel)
{
    size_t wanted = sizeof channel->bytes;
    if (channel->left >= 0 && (uint64_t)channel->left < wanted)
        wanted = (size_t)channel->left;
    ssize_t got = wanted ? read(channel->from, channel->bytes, wanted) : 0;
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (got <= 0) {
        finish(channel);
        return;
    }
    channel->at = 0;
    channel->size = (size_t)got;
    if (channel->left >= 0)
        channel->left -= got;
}

static void give(struct channel *channel)
{
    size_t size = channel->size - channel->at;
    ssize_t done = write(channel->to, channel->bytes + channel->at, size < CARRY_OUT ? size : CARRY_OUT);
    if (done < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (done < 0)
        finish(channel); /* nobody reads `to` any more; closing our end of the pipe tells the writer */
    else
        channel->at += (size_t)done;
}

void channel_turn(struct channel *channel, short events)
{
    if (!events)
        return;
    if (channel->at < channel->size)
        give(channel);
    else if (channel->from >= 0)
        take(channel);
}

/*
 * Returns the host's id of the job's user. The pipes get this owner, otherwise the job could not open its own /dev/stdout. The
 * peer of the socket is pid 1 of the container, so its uid_map has the answer.
 */
static uid_t host_id(int sock, const char *inside)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    char path[64], map[128] = "";
    unsigned long long first, base, count;
    uint64_t id;
    if (!parse_number(inside, UINT32_MAX - 1, &id))
        fail(UNREACHABLE, "--user: expected a user id as a decimal number, got", inside);
    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &size))
        fail(UNREACHABLE, "SO_PEERCRED", strerror(errno));
    (void)snprintf(path, sizeof path, "/proc/%d/uid_map", (int)peer.pid);
    scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, map, sizeof map - 1) <= 0)
        fail(UNREACHABLE, path, strerror(errno));
    if (sscanf(map, "%llu %llu %llu", &first, &base, &count) != 3 || first || id >= count)
        fail(UNREACHABLE, "--user: expected an id that is mapped in the container, got", inside);
    return (uid_t)(base + id);
}

void streams_make(struct streams *streams, int sock, const char *uid)
{
    const uid_t owner = host_id(sock, uid);
    for (int i = 0; i < 3; i++) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) || fchown(ends[0], owner, (gid_t)-1))
            fail(UNREACHABLE, "pipe", strerror(errno));
        int mine = ends[i == 0];
        (void)fcntl(mine, F_SETFL, O_NONBLOCK);
        streams->inside[i] = ends[i != 0];
        streams->channels[i] = i == 0 ? (struct channel){.from = 0, .to = mine, .ours = OURS_TO, .left = -1}
                                      : (struct channel){.from = mine, .to = i, .ours = OURS_FROM, .left = -1};
    }
    streams->count = 3;
}

void streams_terminal(struct streams *streams, int master)
{
    (void)fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK);
    streams->channels[0] = (struct channel){.from = 0, .to = master, .left = -1};
    streams->channels[1] = (struct channel){.from = master, .to = 1, .left = -1};
    streams->count = 2;
}

void streams_bound(struct streams *streams, bool terminal)
{
    streams->channels[0].from = -1;
    streams->channels[0].at = streams->channels[0].size = 0;
    for (int i = 1; i < streams->count; i++) {
        int waiting = LATE_BYTES;
        struct channel *channel = &streams->channels[i];
        if (channel->from >= 0 && (terminal || !ioctl(channel->from, FIONREAD, &waiting)))
            channel->left = waiting;
    }
}
