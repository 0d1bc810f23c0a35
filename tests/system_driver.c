/* tests/system_driver.c: `system_driver ROOT` prints the cores and the processors that a process may use on
 * the machine whose files lie under ROOT (cli/system.h). */
#include <stdio.h>

#include "cli/system.h"

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    printf("%d %d\n", physical_cores(argv[1]), allowed_processors(argv[1]));
    return 0;
}
