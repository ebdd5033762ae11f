/* Replies to clients, one packet each (PROTOCOL.md, "2. The socket"). */
#include "replies.h"
#include <stdio.h>
#include <sys/socket.h>

void reply(struct client *client, const char *words, size_t size, int fd)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {(void *)words, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    /* Shut down a client that does not read. Its own event drops it later, because a caller may be walking the list. */
    if (sendmsg(client->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        (void)shutdown(client->source.fd, SHUT_RDWR);
}

void reply_error(struct client *client, int error, const char *text)
{
    char words[512];
    int size = snprintf(words, sizeof words, "error%c%s%c%.300s: %s", 0, errno_name(error), 0, text, strerror(error)) + 1;
    reply(client, words, (size_t)size, -1);
}

void reply_ok(struct client *client) { reply(client, "ok", 3, -1); }

int describe(const struct job *job, char *text, size_t size, char separator)
{
    switch (job->recorded ? job->ending : RUNNING) {
    case EXITED: return snprintf(text, size, "exit%c%d", separator, job->code);
    case SIGNALED: return snprintf(text, size, "signal%c%d", separator, job->code);
    case OVERRAN: return snprintf(text, size, "overran");
    default: return snprintf(text, size, "running");
    }
}

void reply_ending(struct client *client, const struct job *job)
{
    char words[64] = "ok";
    if (!job->recorded) {
        reply_error(client, ENOENT, job->id);
        return;
    }
    reply(client, words, (size_t)(3 + describe(job, words + 3, sizeof words - 3, 0) + 1), -1);
}

void reply_started(struct client *client, const struct job *job)
{
    char words[512];
    int size = snprintf(words, sizeof words, "ok%cstarted%c%d", 0, 0, job->pid) + 1;
    memcpy(words + size, job->clamped, job->clamped_size);
    reply(client, words, (size_t)size + job->clamped_size, job->handover);
}
