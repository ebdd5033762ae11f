/* A table with a row for each directive: its name, how many values it takes, and the function that stores them. */
#include "plan.h"
#include <linux/capability.h>
#include <stdio.h>

static _Noreturn void refuse(const char *directive, const char *why)
{
    errno = EINVAL;
    die(directive, why);
}

static _Noreturn void refuse_value(const char *directive, const char *expected, const char *value)
{
    char why[384];
    (void)snprintf(why, sizeof why, "expected %s, got %.200s", expected, value);
    refuse(directive, why);
}

static uint64_t number(const char *directive, const char *word, uint64_t max)
{
    uint64_t value;
    char expected[64];
    (void)snprintf(expected, sizeof expected, "a decimal number up to %llu", (unsigned long long)max);
    if (!parse_number(word, max, &value))
        refuse_value(directive, expected, word);
    return value;
}

static const char *absolute(const char *directive, const char *path)
{
    if (path[0] != '/')
        refuse_value(directive, "an absolute path", path);
    return path;
}

static void add(const char *directive, const char **list, int *count, int max, const char *path)
{
    if (*count == max)
        refuse(directive, "given more often than the protocol allows");
    list[(*count)++] = absolute(directive, path);
}

static void set_filter(const char *directive, struct filter *filter, const char *hex)
{
    int size = hex_decode(hex, (uint8_t *)filter->code, sizeof filter->code);
    if (size <= 0 || size % (int)sizeof(struct sock_filter))
        refuse(directive, "expected an array of struct sock_filter in lower-case hexadecimal");
    filter->count = (unsigned short)((size_t)size / sizeof(struct sock_filter));
}

static void do_version(struct plan *p, char **v) { (void)p; if (strcmp(v[0], "1")) refuse_value("version", "1", v[0]); }
static void do_handle(struct plan *p, char **v) { p->handle = v[0]; }
static void do_hostname(struct plan *p, char **v) { p->hostname = v[0]; }
static void do_ids(struct plan *p, char **v)
{
    p->id_base = (uint32_t)number("ids", v[0], UINT32_MAX - 65536);
    p->id_count = (uint32_t)number("ids", v[1], 65536);
    if (p->id_base == 0 || p->id_count < 2)
        refuse("ids", "expected BASE > 0 and COUNT > 1");
}
static void do_layer(struct plan *p, char **v) { add("layer", p->layers, &p->layer_count, MAX_LAYERS, v[0]); }
static void do_upper(struct plan *p, char **v) { p->upper = absolute("upper", v[0]); }
static void do_home(struct plan *p, char **v) { p->home = absolute("home", v[0]); }
static void do_home_layer(struct plan *p, char **v)
{
    add("home-layer", p->home_layers, &p->home_layer_count, MAX_LAYERS, v[0]);
}
static void do_home_upper(struct plan *p, char **v) { p->home_upper = absolute("home-upper", v[0]); }
static void do_overlay(struct plan *p, char **v) { p->overlay = v[0]; }
static void do_bind(struct plan *p, char **v)
{
    static const char *const words[] = {"ro", "rw", "ro-mapped", "rw-mapped"};
    int word = 0;
    if (p->bind_count == MAX_BINDS)
        refuse("bind", "given more often than the protocol allows");
    while (word < 4 && strcmp(v[2], words[word]))
        word++;
    if (word == 4)
        refuse_value("bind", "ro, rw, ro-mapped or rw-mapped", v[2]);
    p->binds[p->bind_count++] =
        (struct bind){absolute("bind", v[0]), absolute("bind", v[1]), .read_only = word % 2 == 0, .mapped = word >= 2};
}
static void do_file(struct plan *p, char **v)
{
    char *end;
    unsigned long mode = strtoul(v[1], &end, 8);
    if (p->file_count == MAX_FILES)
        refuse("file", "given more often than the protocol allows");
    if (*end || !*v[1] || mode > 0777)
        refuse_value("file", "an octal mode up to 777", v[1]);
    p->files[p->file_count++] = (struct plan_file){absolute("file", v[0]), v[2], (mode_t)mode};
}
static void do_shm(struct plan *p, char **v) { p->shm_bytes = number("shm", v[0], UINT64_MAX / 2); }
static void do_cgroup_init(struct plan *p, char **v)
{
    add("cgroup-init", p->cgroup_init, &p->cgroup_init_count, MAX_CGROUPS, v[0]);
}
static void do_cgroup_job(struct plan *p, char **v)
{
    add("cgroup-job", p->cgroup_job, &p->cgroup_job_count, MAX_CGROUPS, v[0]);
}
static void do_cgroup_mount(struct plan *p, char **v)
{
    /* the name of a directory, and also a mount's options */
    if (p->cgroup_mount_count == MAX_CGROUPS)
        refuse("cgroup-mount", "given more often than the protocol allows");
    if (!*v[0] || strspn(v[0], "abcdefghijklmnopqrstuvwxyz_,2") != strlen(v[0]))
        refuse_value("cgroup-mount", "names of controllers, joined by commas, or cgroup2", v[0]);
    p->cgroup_mounts[p->cgroup_mount_count++] = v[0];
}
static void do_net(struct plan *p, char **v)
{
    if (strcmp(v[0], "none") && strcmp(v[0], "veth"))
        refuse_value("net", "none or veth", v[0]);
    p->veth = !strcmp(v[0], "veth");
}
static void do_eth0(struct plan *p, char **v)
{
    p->eth0.address = v[0];
    p->eth0.prefix = (unsigned)number("eth0", v[1], 32);
    p->eth0.gateway = v[2];
    p->eth0.gateway_mac = v[3];
    p->eth0.mtu = (unsigned)number("eth0", v[4], 65535);
    p->eth0.given = true;
}
static void do_bounding(struct plan *p, char **v)
{
    char *end;
    p->bounding = strtoull(v[0], &end, 16);
    if (*end || !*v[0])
        refuse_value("bounding", "a hexadecimal mask of 64 bits", v[0]);
    if (p->bounding >> CAP_SYS_ADMIN & 1)
        refuse("bounding", "CAP_SYS_ADMIN is not allowed: with it a job could unmount the masks");
}
static void do_seccomp(struct plan *p, char **v) { set_filter("seccomp", &p->job_filter, v[0]); }
static void do_seccomp_init(struct plan *p, char **v) { set_filter("seccomp-init", &p->init_filter, v[0]); }
static void do_socket(struct plan *p, char **v) { p->socket = absolute("socket", v[0]); }
static void do_shell(struct plan *p, char **v) { p->shell = v[0]; }

static const struct directive {
    const char *name;
    int values;
    void (*apply)(struct plan *, char **);
} directives[] = {
    {"version", 1, do_version},         {"handle", 1, do_handle},     {"hostname", 1, do_hostname},
    {"ids", 2, do_ids},                 {"layer", 1, do_layer},       {"upper", 1, do_upper},
    {"home", 1, do_home},               {"home-layer", 1, do_home_layer}, {"home-upper", 1, do_home_upper},
    {"overlay", 1, do_overlay},         {"bind", 3, do_bind},         {"file", 3, do_file},
    {"shm", 1, do_shm},                 {"cgroup-init", 1, do_cgroup_init}, {"cgroup-job", 1, do_cgroup_job},
    {"cgroup-mount", 1, do_cgroup_mount},
    {"net", 1, do_net},                 {"eth0", 5, do_eth0},         {"bounding", 1, do_bounding},
    {"seccomp", 1, do_seccomp},         {"seccomp-init", 1, do_seccomp_init}, {"socket", 1, do_socket},
    {"shell", 1, do_shell},
};

static void check(const struct plan *p)
{
    if (!p->handle || !p->layer_count || !p->upper || !p->socket || !p->id_count)
        refuse("plan", "needs handle, ids, layer, upper and socket");
    if (p->home && (!p->home_layer_count || !p->home_upper))
        refuse("home", "needs home-layer and home-upper");
    if (p->veth && !p->eth0.given)
        refuse("net", "veth needs eth0");
}

void plan_parse(struct plan *plan, char **words, int count)
{
    *plan = (struct plan){.overlay = "", .shm_bytes = 64 << 20, .shell = "/bin/bash"};
    if (count < 2 || strcmp(words[0], "version"))
        refuse("plan", "expected the directive `version` first");
    for (int at = 0; at < count;) {
        const struct directive *found = NULL;
        for (size_t i = 0; i < sizeof directives / sizeof *directives; i++)
            if (!strcmp(directives[i].name, words[at]))
                found = &directives[i];
        if (!found)
            refuse("unknown directive", words[at]);
        if (count - at - 1 < found->values)
            refuse(found->name, "the plan ends before the last value of this directive");
        found->apply(plan, words + at + 1);
        at += 1 + found->values;
    }
    if (!plan->hostname)
        plan->hostname = plan->handle;
    check(plan);
}

char **plan_read(int fd, int *ret_count)
{
    enum { MAX_PLAN = 1 << 20, MAX_WORDS = 4096 };
    char *text = malloc(MAX_PLAN);
    char **words = malloc(MAX_WORDS * sizeof *words);
    size_t size = 0;
    if (!text || !words)
        die("plan", "memory");
    for (;;) {
        ssize_t got = read(fd, text + size, MAX_PLAN - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            die("read", "plan");
        if (got == 0)
            break;
        size += (size_t)got;
        if (size == MAX_PLAN)
            refuse("plan", "larger than 1 MiB");
    }
    if (!size || text[size - 1])
        refuse("plan", "expected words that each end with a NUL");
    int count = 0;
    for (size_t at = 0; at < size; at += strlen(text + at) + 1) {
        if (count == MAX_WORDS)
            refuse("plan", "more than 4096 words");
        words[count++] = text + at;
    }
    *ret_count = count;
    return words;
}
