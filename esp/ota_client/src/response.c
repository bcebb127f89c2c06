/* The header fields of an answer that the client acts on. */
#include "internal.h"

#include <string.h>

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool named(const char *name, const char *want)
{
    while (*name != '\0' && lower(*name) == *want) {
        name++;
        want++;
    }
    return *name == '\0' && *want == '\0';
}

/* Content-Range: bytes FIRST-LAST/TOTAL, or bytes followed by a star and TOTAL with
 * a 416, which says nothing that is needed. */
static bool content_range(provisiond_ota_response *resp, const char *v)
{
    static const char unit[] = "bytes ";
    const char *dash, *slash;
    if (strncmp(v, unit, sizeof unit - 1) != 0) {
        return false;
    }
    v += sizeof unit - 1;
    dash = strchr(v, '-');
    slash = strchr(v, '/');
    if (dash == NULL || slash == NULL || slash < dash) {
        return v[0] == '*' && resp->status == 416;
    }
    if (!pvo_decimal(v, (size_t)(dash - v), &resp->range_first) ||
        !pvo_decimal(dash + 1, (size_t)(slash - dash - 1), &resp->range_last) ||
        !pvo_decimal(slash + 1, strlen(slash + 1), &resp->range_total)) {
        return false;
    }
    resp->has_range = true;
    return resp->range_first <= resp->range_last && resp->range_last < resp->range_total;
}

/* A strong entity tag. A weak one cannot be used with If-Range (RFC 9110, 13.1.5). */
static bool entity_tag(provisiond_ota_response *resp, const char *v)
{
    size_t n = strlen(v);
    if (n < 2 || n > PROVISIOND_OTA_ETAG_MAX || v[0] != '"' || v[n - 1] != '"') {
        return false;
    }
    for (size_t i = 1; i + 1 < n; i++) {
        if (v[i] <= ' ' || v[i] > '~' || v[i] == '"') {
            return false;
        }
    }
    memcpy(resp->etag, v, n + 1);
    return true;
}

void provisiond_ota_response_header(provisiond_ota_response *resp, const char *name, const char *value)
{
    if (named(name, "content-length")) {
        resp->bad |= resp->has_length || !pvo_decimal(value, strlen(value), &resp->length);
        resp->has_length = true;
    } else if (named(name, "content-range")) {
        resp->bad |= resp->has_range || !content_range(resp, value);
    } else if (named(name, "etag")) {
        resp->bad |= resp->has_etag || !entity_tag(resp, value);
        resp->has_etag = true;
    } else if (named(name, "retry-after")) {
        /* A date is allowed too; the unit may not know the time. */
        resp->has_retry = pvo_decimal(value, strlen(value), &resp->retry_after);
    } else if (named(name, "transfer-encoding") || named(name, "content-encoding")) {
        resp->bad = true; /* only plain bodies with a length are taken */
    }
}
