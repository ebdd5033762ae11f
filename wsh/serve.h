/* pid 1 at work. */
#pragma once
struct inside;

/* From here on nobody may die: a function that fails returns -errno, and the loop goes on. */
_Noreturn void serve(const struct inside *inside);
