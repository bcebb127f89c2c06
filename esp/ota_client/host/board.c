#include "board.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Without the other side there is no board: the process ends as a board would
 * without power. */
static void all_out(const uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t w = write(STDOUT_FILENO, p, n);
        if (w < 0 && errno == EINTR) {
            continue;
        }
        if (w <= 0) {
            _exit(3);
        }
        p += w;
        n -= (size_t)w;
    }
}

static void all_in(uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t r = read(STDIN_FILENO, p, n);
        if (r < 0 && errno == EINTR) {
            continue;
        }
        if (r <= 0) {
            _exit(3);
        }
        p += r;
        n -= (size_t)r;
    }
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Asks, and takes an answer of at most cap bytes. */
static int ask(char op, uint32_t address, uint32_t len, const uint8_t *data, uint8_t *answer, size_t cap, size_t *got)
{
    uint8_t head[9];
    head[0] = (uint8_t)op;
    put32(head + 1, address);
    put32(head + 5, len);
    all_out(head, sizeof head);
    if (data != NULL) {
        all_out(data, len);
    }
    all_in(head, 5);
    *got = get32(head + 1);
    if (*got > cap) {
        _exit(3);
    }
    if (*got > 0) {
        all_in(answer, *got);
    }
    return head[0];
}

static bool plain(char op, uint32_t address, uint32_t len, const uint8_t *data)
{
    size_t got;
    return ask(op, address, len, data, NULL, 0, &got) == 0;
}

static void get_slot(provisiond_ota_slot *s, const uint8_t *p)
{
    memcpy(s->name, p, sizeof s->name);
    s->name[sizeof s->name - 1] = '\0';
    s->address = get32(p + 8);
    s->size = get32(p + 12);
}

static provisiond_ota_err slots(void *ctx, provisiond_ota_slot *running, provisiond_ota_slot *next)
{
    uint8_t a[32];
    size_t got;
    (void)ctx;
    if (ask('S', 0, 0, NULL, a, sizeof a, &got) != 0 || got != sizeof a) {
        return PROVISIOND_OTA_PARTITION;
    }
    get_slot(running, a);
    get_slot(next, a + 16);
    return PROVISIOND_OTA_OK;
}

static provisiond_ota_err state(void *ctx, const provisiond_ota_slot *slot, provisiond_ota_state *out)
{
    uint8_t a;
    size_t got;
    (void)ctx;
    if (ask('s', slot->address, 0, NULL, &a, 1, &got) != 0 || got != 1 || a > PROVISIOND_OTA_STATE_REJECTED) {
        return PROVISIOND_OTA_PARTITION;
    }
    *out = (provisiond_ota_state)a;
    return PROVISIOND_OTA_OK;
}

static provisiond_ota_err erase(void *ctx, const provisiond_ota_slot *slot, uint32_t offset)
{
    (void)ctx;
    return plain('E', slot->address + offset, PROVISIOND_OTA_SECTOR, NULL) ? PROVISIOND_OTA_OK
                                                                           : PROVISIOND_OTA_FLASH_ERASE;
}

static provisiond_ota_err write_raw(void *ctx, const provisiond_ota_slot *slot, uint32_t offset, const uint8_t *data, uint32_t len)
{
    (void)ctx;
    return plain('W', slot->address + offset, len, data) ? PROVISIOND_OTA_OK : PROVISIOND_OTA_FLASH_WRITE;
}

static provisiond_ota_err read_raw(void *ctx, const provisiond_ota_slot *slot, uint32_t offset, uint8_t *data, uint32_t len)
{
    size_t got;
    (void)ctx;
    return ask('R', slot->address + offset, len, NULL, data, len, &got) == 0 && got == len ? PROVISIOND_OTA_OK
                                                                                             : PROVISIOND_OTA_FLASH_READ;
}

static provisiond_ota_err set_boot(void *ctx, const provisiond_ota_slot *slot)
{
    size_t got;
    (void)ctx;
    switch (ask('B', slot->address, 0, NULL, NULL, 0, &got)) {
    case 0:
        return PROVISIOND_OTA_OK;
    case 1:
        return PROVISIOND_OTA_VALIDATE;
    case 2:
        return PROVISIOND_OTA_SECURE_VERSION;
    default:
        return PROVISIOND_OTA_SET_BOOT;
    }
}

static provisiond_ota_err confirm(void *ctx)
{
    (void)ctx;
    return plain('C', 0, 0, NULL) ? PROVISIOND_OTA_OK : PROVISIOND_OTA_CONFIRM;
}

static provisiond_ota_err load(void *ctx, uint8_t *record, size_t cap, size_t *len)
{
    (void)ctx;
    return ask('L', 0, 0, NULL, record, cap, len) == 0 ? PROVISIOND_OTA_OK : PROVISIOND_OTA_RECORD;
}

static provisiond_ota_err save(void *ctx, const uint8_t *record, size_t len)
{
    (void)ctx;
    return plain('V', 0, (uint32_t)len, record) ? PROVISIOND_OTA_OK : PROVISIOND_OTA_RECORD;
}

const provisiond_ota_flash host_board = {
    slots, state, erase, write_raw, read_raw, set_boot, confirm, load, save,
};

void host_board_result(const char *text)
{
    (void)plain('X', 0, (uint32_t)strlen(text), (const uint8_t *)text);
}
