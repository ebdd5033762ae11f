/*
 * wsh: runs a program in a container, as ssh does on a host (PROTOCOL.md, "4. wsh").
 *
 * If standard input is a terminal, the job gets a terminal of its own; otherwise it gets three pipes that wsh makes. wsh copies
 * bytes in both directions. Its own descriptors never enter the container: a process that a job left behind could read what
 * the user types afterwards, or truncate the file behind a descriptor. One connection spawns and waits for the job; a second one
 * sends signals and window sizes meanwhile.
 */
#include "carry.h"
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <termios.h>

enum { PACKET = 1 << 20, REPLY = 65536, MAX_ENV = PACKET / 2 };
enum { ANSWER_S = 10, LATE_MS = 100 }; /* a terminal's bytes pass through a kernel thread */

struct options {
    const char *socket, *uid, *gid, *cwd;
    const char **env;
    int env_count;
    char **command;
    bool terminal;
};

static struct termios saved;
static bool raw;

static void restore(void)
{
    if (raw)
        (void)tcsetattr(0, TCSADRAIN, &saved);
    raw = false;
}

_Noreturn void fail(int status, const char *what, const char *why)
{
    restore();
    (void)dprintf(2, "wsh: %s: %s\n", what, why);
    _exit(status);
}

static _Noreturn void usage(void)
{
    (void)dprintf(2, "usage: wsh [--socket PATH] [--user UID[:GID]] [--env K=V]... [--env-fd FD] [--cwd DIR] [--] "
                     "[COMMAND ARG...]\n");
    _exit(UNREACHABLE);
}

/* Reads `K=V` words, each ended by a NUL. As arguments they would be visible to every user of the host. */
static void read_environment(struct options *o, const char *number)
{
    static char words[PACKET + 1];
    uint64_t fd;
    size_t size = 0;
    ssize_t got = 1;
    if (!parse_number(number, 1 << 20, &fd))
        usage();
    while (size < sizeof words && (got = read((int)fd, words + size, sizeof words - size)) > 0)
        size += (size_t)got;
    if (got < 0 || size == sizeof words)
        fail(UNREACHABLE, "--env-fd", got < 0 ? strerror(errno) : "expected at most 1 MiB, got more");
    if (size && words[size - 1])
        fail(UNREACHABLE, "--env-fd", "expected K=V words that each end with a NUL");
    for (size_t at = 0; at < size; at += strlen(words + at) + 1)
        if (words[at] && o->env_count < MAX_ENV)
            o->env[o->env_count++] = words + at;
    (void)close((int)fd);
}

static struct options parse(char **argv)
{
    static const char *env[MAX_ENV];
    struct options o = {.socket = "wshd.sock", .uid = "0", .gid = "0", .cwd = "/", .env = env};
    int at = 1;
    for (; argv[at] && argv[at][0] == '-'; at += 2) {
        char *value = argv[at + 1];
        if (!strcmp(argv[at], "--")) {
            at++;
            break;
        }
        if (!value)
            usage();
        if (!strcmp(argv[at], "--socket"))
            o.socket = value;
        else if (!strcmp(argv[at], "--cwd"))
            o.cwd = value;
        else if (!strcmp(argv[at], "--env") && o.env_count < MAX_ENV)
            o.env[o.env_count++] = value;
        else if (!strcmp(argv[at], "--env-fd"))
            read_environment(&o, value);
        else if (!strcmp(argv[at], "--user")) {
            o.uid = o.gid = strsep(&value, ":");
            if (value)
                o.gid = value;
        } else
            usage();
    }
    o.command = argv + at;
    o.terminal = isatty(0);
    return o;
}

/* A stopped or frozen pid 1 still accepts connections, but never replies. */
static const char *why(void)
{
    return errno == EAGAIN ? "pid 1 of the container has not answered for 10 s" : strerror(errno);
}

/* sun_path has at most 107 bytes; a path through the directory's descriptor is short enough. */
static int reach(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *slash = strrchr(path, '/');
    char folder[4096] = ".", greeting[REPLY];
    if (slash && (size_t)(slash - path) < sizeof folder - 1)
        (void)snprintf(folder, sizeof folder, "%.*s/", (int)(slash - path), path);
    scoped_fd int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), size = 2 * PACKET;
    const struct timeval patience = {.tv_sec = ANSWER_S};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", dir, slash ? slash + 1 : path);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (dir < 0 || fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail(UNREACHABLE, path, why());
    if (length >= (int)sizeof address.sun_path)
        fail(UNREACHABLE, path, strerror(ENAMETOOLONG));
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size))
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    ssize_t got = recv(fd, greeting, sizeof greeting, 0);
    if (got < 0)
        fail(UNREACHABLE, path, why());
    if (got < 7 || memcmp(greeting, "wshd\0001", 7))
        fail(UNREACHABLE, path, "expected a wshd of protocol version 1 there");
    return fd;
}

static char packet[PACKET];
static size_t packet_size;

static void add(const char *word)
{
    size_t size = strlen(word) + 1;
    if (size > sizeof packet - packet_size)
        fail(UNREACHABLE, "command", "expected at most 1 MiB of arguments and environment, got more");
    memcpy(packet + packet_size, word, size);
    packet_size += size;
}

static void add_pair(const char *key, const char *value)
{
    add(key);
    add(value);
}

static void add_number(const char *key, unsigned value)
{
    char text[16];
    (void)snprintf(text, sizeof text, "%u", value);
    add_pair(key, text);
}

static void build_spawn(const struct options *o, const char *job)
{
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    bool path = false, term = false;
    add_pair("spawn", job);
    for (char **word = o->command; *word; word++)
        add_pair("arg", *word);
    for (int i = 0; i < o->env_count; i++) {
        path |= !strncmp(o->env[i], "PATH=", 5);
        term |= !strncmp(o->env[i], "TERM=", 5);
        add_pair("env", o->env[i]);
    }
    if (!path)
        add_pair("env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    add_pair("uid", o->uid);
    add_pair("gid", o->gid);
    add_pair("cwd", o->cwd);
    add_pair("io", o->terminal ? "terminal" : "direct");
    if (o->terminal) {
        char line[256];
        const char *name = getenv("TERM");
        (void)snprintf(line, sizeof line, "TERM=%s", name ? name : "dumb");
        if (!term)
            add_pair("env", line);
        (void)ioctl(0, TIOCGWINSZ, &size);
        add_number("rows", size.ws_row);
        add_number("cols", size.ws_col);
    } else {
        add_pair("fd", "stdin");
        add_pair("fd", "stdout");
        add_pair("fd", "stderr");
    }
    add_pair("fd", "record");
}

static void send_spawn(int sock, const int *fds, size_t count)
{
    char control[CMSG_SPACE(sizeof(int) * 4)] = {0};
    struct iovec part = {packet, packet_size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
    if (sendmsg(sock, &message, MSG_NOSIGNAL) < 0)
        fail(UNREACHABLE, "spawn", strerror(errno));
}

/* Word N of a reply; "" if it has fewer. */
static const char *word(const char *reply, size_t size, int n)
{
    const char *at = reply, *end = reply + size;
    for (; n && at < end; n--)
        at += strlen(at) + 1;
    return at < end ? at : "";
}

/* Reads the reply to spawn. Returns the terminal's master, or -1. */
static int started(int sock, const struct options *o)
{
    static char reply[REPLY + 1];
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {reply, REPLY};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    if (size <= 0)
        fail(UNREACHABLE, o->socket, size ? why() : "the container has ended");
    if (!strcmp(word(reply, (size_t)size, 0), "error")) {
        const char *name = word(reply, (size_t)size, 1), *text = word(reply, (size_t)size, 2);
        bool exec = !strncmp(text, "exec: ", 6);
        int status = !exec ? UNREACHABLE : !strcmp(name, "ENOENT") ? NOT_FOUND : NOT_EXECUTABLE;
        fail(status, o->command[0] ? o->command[0] : "shell", text);
    }
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int master = -1;
    if (header && header->cmsg_type == SCM_RIGHTS)
        memcpy(&master, CMSG_DATA(header), sizeof master);
    return master;
}

static void make_raw(void)
{
    if (tcgetattr(0, &saved))
        return;
    struct termios wanted = saved;
    cfmakeraw(&wanted);
    raw = !tcsetattr(0, TCSADRAIN, &wanted);
}

/* Sends a signal or a new window size on the second connection. The reply is ignored: the job may have ended. */
static void forward(int sock, const char *job, int number)
{
    struct winsize size;
    char words[256], reply[REPLY];
    int length;
    if (number != SIGWINCH)
        length = snprintf(words, sizeof words, "signal%c%s%c%d", 0, job, 0, number) + 1;
    else if (!ioctl(0, TIOCGWINSZ, &size))
        length = snprintf(words, sizeof words, "winsize%c%s%c%u%c%u", 0, job, 0, size.ws_row, 0, size.ws_col) + 1;
    else
        return;
    if (send(sock, words, (size_t)length, MSG_NOSIGNAL) > 0)
        (void)!recv(sock, reply, sizeof reply, 0);
}

/* Reads the exit status from the first line of the record, where also a job leaves it that ends before the wait. The user gets a
 * message if the job did not end by itself: a stop hangs up every terminal, and without a record the container is gone. */
static int status_of(int record, bool terminal)
{
    char line[64] = "";
    int number = 0;
    (void)!pread(record, line, sizeof line - 1, 0);
    if (sscanf(line, "exit %d", &number) == 1)
        return number;
    if (sscanf(line, "signal %d", &number) != 1)
        fail(UNREACHABLE, "no exit status", "the container has ended");
    if (terminal && number == SIGHUP)
        (void)dprintf(2, "\nwsh: hung up: the container is being stopped\n");
    return 128 + number;
}

static void serve(struct streams *streams, int sock, int side, int signals, const char *job, bool terminal)
{
    static char reply[REPLY];
    bool ended = false;
    for (;;) {
        struct pollfd fds[5] = {{ended ? -1 : sock, POLLIN, 0}, {signals, POLLIN, 0}};
        bool done = true, owing = false;
        for (int i = 0; i < streams->count; i++) {
            channel_ask(&streams->channels[i], &fds[2 + i]);
            done &= i == 0 || channel_done(&streams->channels[i]);
            owing |= streams->channels[i].at < streams->channels[i].size;
        }
        if (ended && done)
            return;
        /* The reader of our output may be slow; the job has ended and writes no more. */
        int ready = poll(fds, (nfds_t)(2 + streams->count), ended && !owing ? LATE_MS : -1);
        if (ready == 0)
            return;
        if (ready < 0)
            continue;
        struct signalfd_siginfo info;
        if (fds[1].revents && read(signals, &info, sizeof info) == sizeof info && !ended)
            forward(side, job, (int)info.ssi_signo);
        for (int i = 0; i < streams->count; i++)
            channel_turn(&streams->channels[i], fds[2 + i].revents);
        if (fds[0].revents) {
            (void)!recv(sock, reply, sizeof reply, 0);
            ended = true;
            streams_bound(streams, terminal);
        }
    }
}

int main(int argc, char **argv)
{
    (void)argc;
    static struct streams streams;
    int fd;
    /* Fills descriptors 0 to 2 if the caller closed them: nothing opened below may become a standard descriptor. */
    while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd < 3)
        ;
    close_fd(&fd);
    struct options o = parse(argv);
    char job[64], request[128];
    uint32_t chance = 0;
    sigset_t mine;
    (void)sigemptyset(&mine);
    for (const int *number = (const int[]){SIGTERM, SIGHUP, SIGINT, SIGWINCH, 0}; *number; number++)
        (void)sigaddset(&mine, *number);
    (void)sigprocmask(SIG_BLOCK, &mine, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &mine, SFD_CLOEXEC);
    int sock = reach(o.socket), side = reach(o.socket);
    int record = memfd_create("record", MFD_CLOEXEC);
    if (signals < 0 || record < 0)
        fail(UNREACHABLE, "descriptors", strerror(errno));
    (void)!syscall(SYS_getrandom, &chance, sizeof chance, 0);
    (void)snprintf(job, sizeof job, "wsh-%d-%08x", (int)getpid(), chance);
    build_spawn(&o, job);
    if (o.terminal)
        send_spawn(sock, &record, 1);
    else {
        streams_make(&streams, sock, o.uid);
        send_spawn(sock, (int[]){streams.inside[0], streams.inside[1], streams.inside[2], record}, 4);
        for (int i = 0; i < 3; i++)
            (void)close(streams.inside[i]);
    }
    int master = started(sock, &o);
    int size = snprintf(request, sizeof request, "wait%c%s", 0, job) + 1;
    if (send(sock, request, (size_t)size, MSG_NOSIGNAL) < 0)
        fail(UNREACHABLE, o.socket, strerror(errno));
    if (master >= 0) {
        streams_terminal(&streams, master);
        make_raw();
    }
    serve(&streams, sock, side, signals, job, o.terminal);
    restore();
    return status_of(record, master >= 0);
}
