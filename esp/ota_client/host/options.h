/* The command line that the host's programs have in common; main.c has its words. */
#ifndef PROVISIOND_OTA_HOST_OPTIONS_H
#define PROVISIOND_OTA_HOST_OPTIONS_H

#include "provisiond_ota.h"

typedef struct {
    const char *host, *port;
    uint32_t timeout_ms;
    provisiond_ota_config config; /* without tables and buffer */
} host_options;

/* Gives the index of the first action, or a negative number after it said what is
 * wrong. */
int host_options_parse(host_options *o, int argc, char **argv);

/* Says what is wrong and gives main's exit code. */
int host_usage(const char *what);

/* Does the actions and tells the board their results, that of init first. */
int host_run(provisiond_ota *client, provisiond_ota_err init, int argc, char **argv, int first);

#endif
