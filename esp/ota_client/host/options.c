#include "options.h"

#include "board.h"
#include "internal.h"

#include <stdio.h>
#include <string.h>

static char token[257];

int host_usage(const char *what)
{
    fprintf(stderr, "ota_client: %s\n", what);
    return 2;
}

static bool number(const char *s, uint32_t *out)
{
    return pvo_decimal(s, strlen(s), out);
}

static bool read_token(const char *path)
{
    FILE *f = fopen(path, "r");
    bool ok;
    if (f == NULL) {
        return false;
    }
    ok = fgets(token, sizeof token, f) != NULL;
    (void)fclose(f);
    token[strcspn(token, "\n")] = '\0';
    return ok;
}

static bool parse_mac(const char *s, uint8_t mac[6])
{
    if (strlen(s) != 17) {
        return false;
    }
    for (size_t i = 0; i < 6; i++) {
        if (!pvo_hex(s + 3 * i, 2, mac + i, 1)) {
            return false;
        }
    }
    return true;
}

int host_options_parse(host_options *o, int argc, char **argv)
{
    int i = 1;
    memset(o, 0, sizeof *o);
    o->timeout_ms = 10000;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        const char *name = argv[i], *v = i + 1 < argc ? argv[i + 1] : "";
        bool ok = false;
        if (strcmp(name, "--server") == 0 && i + 2 < argc) {
            o->host = v;
            o->port = argv[i + 2];
            i++;
            ok = true;
        } else if (strcmp(name, "--mac") == 0) {
            ok = parse_mac(v, o->config.mac);
        } else if (strcmp(name, "--chip") == 0) {
            o->config.chip = v;
            ok = true;
        } else if (strcmp(name, "--key") == 0) {
            ok = pvo_hex(v, strlen(v), o->config.public_key, sizeof o->config.public_key);
        } else if (strcmp(name, "--token-file") == 0) {
            ok = read_token(v);
            o->config.token = token;
        } else if (strcmp(name, "--version") == 0) {
            o->config.version = v;
            ok = true;
        } else if (strcmp(name, "--secure-version") == 0) {
            ok = number(v, &o->config.secure_version);
        } else if (strcmp(name, "--request") == 0) {
            ok = number(v, &o->config.request_bytes);
        } else if (strcmp(name, "--save-every") == 0) {
            ok = number(v, &o->config.save_every);
        } else if (strcmp(name, "--timeout") == 0) {
            ok = number(v, &o->timeout_ms);
        }
        if (!ok) {
            return -host_usage(name);
        }
    }
    if (o->host == NULL || o->config.chip == NULL) {
        return -host_usage("--server and --chip are needed");
    }
    return i;
}

static const char *boot_name(provisiond_ota_boot b)
{
    switch (b) {
    case PROVISIOND_OTA_BOOT_NEW:
        return "new";
    case PROVISIOND_OTA_BOOT_ROLLED_BACK:
        return "rolled-back";
    default:
        return "normal";
    }
}

static void result(const provisiond_ota *client, const char *action, provisiond_ota_err err)
{
    char line[160];
    (void)snprintf(line, sizeof line, "%s %s %d %lu %lu %s", action, provisiond_ota_err_name(err), client->status,
                   (unsigned long)client->retry_after, (unsigned long)client->fetched, boot_name(client->boot));
    host_board_result(line);
}

int host_run(provisiond_ota *client, provisiond_ota_err init, int argc, char **argv, int first)
{
    provisiond_ota_err err = init;
    result(client, "init", err);
    for (int i = first; i < argc && err == PROVISIOND_OTA_OK; i++) {
        if (strcmp(argv[i], "update") == 0) {
            result(client, argv[i], provisiond_ota_update(client));
        } else if (strcmp(argv[i], "confirm") == 0) {
            result(client, argv[i], provisiond_ota_confirm(client));
        } else if (strcmp(argv[i], "report") == 0) {
            result(client, argv[i], provisiond_ota_report(client));
        } else if (strcmp(argv[i], "forget") == 0) {
            result(client, argv[i], provisiond_ota_forget(client));
        } else {
            return host_usage(argv[i]);
        }
    }
    return 0;
}
