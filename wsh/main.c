/* wshd, the init of a container (PROTOCOL.md). This file only reads the command line and starts the launcher. */
#include "launch.h"
#include <stdio.h>

#ifdef __SANITIZE_ADDRESS__
/* pid 1 never ends by itself and may not be traced, so the leak check cannot run. UBSan reads its options when it has a first
 * report, and pid 1 cannot read its own environment then, so the options are compiled in. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0:abort_on_error=1"; }
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) { return "print_stacktrace=1"; }
#endif

static _Noreturn void usage(void)
{
    static const char text[] = "usage: wshd [--no-net] --plan FD | wshd [--no-net] --args WORD...   (see PROTOCOL.md)\n";
    (void)write_all(2, text, sizeof text - 1);
    _exit(2);
}

/* Copies the words and wipes the arguments: /proc/1/cmdline inside would show the host's paths. */
static char **take_words(char **from, int count)
{
    char **words = calloc((size_t)count + 1, sizeof *words);
    if (!words)
        die("plan", "memory");
    for (int i = 0; i < count; i++) {
        if (!(words[i] = strdup(from[i])))
            die("plan", "memory");
        memset(from[i], 0, strlen(from[i]));
    }
    return words;
}

int main(int argc, char **argv)
{
    static struct plan plan;
    bool no_net = false;
    char **words;
    int at = 1, count, fd;
    /* Fills descriptors 0 to 2 if the caller closed them: nothing opened below may become a standard descriptor. */
    while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd < 3)
        ;
    close_fd(&fd);
    if (at < argc && !strcmp(argv[at], "--no-net")) {
        no_net = true;
        at++;
    }
    if (at + 1 >= argc)
        usage();
    if (!strcmp(argv[at], "--plan")) {
        uint64_t number;
        if (!parse_number(argv[at + 1], 1 << 20, &number))
            usage();
        words = plan_read((int)number, &count);
    } else if (!strcmp(argv[at], "--args")) {
        count = argc - at - 1;
        words = take_words(argv + at + 1, count);
    } else
        usage();
    plan_parse(&plan, words, count);
    if (no_net)
        plan.veth = false;
    return launch(&plan);
}
