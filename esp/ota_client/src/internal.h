/* What the files of the client share. */
#ifndef PROVISIOND_OTA_INTERNAL_H
#define PROVISIOND_OTA_INTERNAL_H

#include "provisiond_ota.h"

/* text is a buffer that is written to its end and no further. */
typedef struct {
    char *at;
    size_t cap, len; /* cap counts the closing zero */
    bool full;
} pvo_text;

void pvo_text_start(pvo_text *t, char *buf, size_t cap);
void pvo_text_add(pvo_text *t, const char *s);
void pvo_text_number(pvo_text *t, uint32_t v);
void pvo_text_hex(pvo_text *t, const uint8_t *p, size_t n);
void pvo_text_mac(pvo_text *t, const uint8_t mac[6]);
void pvo_text_query(pvo_text *t, const char *s); /* percent-encoded */
void pvo_text_json(pvo_text *t, const char *s);  /* a JSON string, quotes and all */

/* Reads a decimal number without sign or leading zeros, up to 2^32-1. */
bool pvo_decimal(const char *s, size_t len, uint32_t *out);
/* Reads 2n lower-case hex digits. */
bool pvo_hex(const char *s, size_t len, uint8_t *out, size_t n);
/* 1 to max printable ASCII characters without spaces. */
bool pvo_printable(const char *s, size_t len, size_t max);

#endif
