#include "http.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

void host_http_init(host_http *h, const char *host, const char *port, int timeout_ms)
{
    memset(h, 0, sizeof *h);
    h->host = host;
    h->port = port;
    h->timeout_ms = timeout_ms;
    h->fd = -1;
}

void host_http_close(host_http *h)
{
    if (h->fd >= 0) {
        (void)close(h->fd);
    }
    h->fd = -1;
    h->start = h->end = 0;
    h->left = 0;
}

/* ---- the head ----------------------------------------------------------- */

static bool token_char(uint8_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c != 0 && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

/* Makes a line "name: value" two strings. */
static bool split_field(char *line, size_t len, char **name, char **value)
{
    size_t n = 0;
    while (n < len && token_char((uint8_t)line[n])) {
        n++;
    }
    if (n == 0 || n == len || line[n] != ':') {
        return false; /* also a continued line, which RFC 9112 forbids */
    }
    line[n] = '\0';
    *name = line;
    *value = line + n + 1;
    while (**value == ' ' || **value == '\t') {
        (*value)++;
    }
    while (line + len > *value && (line[len - 1] == ' ' || line[len - 1] == '\t')) {
        len--;
    }
    line[len] = '\0';
    return true;
}

static bool status_line(const char *line, size_t len, provisiond_ota_response *resp, bool *keep)
{
    static const char version[] = "HTTP/1.";
    const char *d = line + 9;
    if (len < 12 || memcmp(line, version, sizeof version - 1) != 0 || (line[7] != '0' && line[7] != '1') ||
        line[8] != ' ' || (len > 12 && line[12] != ' ') || d[0] < '1' || d[0] > '5' || d[1] < '0' || d[1] > '9' ||
        d[2] < '0' || d[2] > '9') {
        return false;
    }
    resp->status = (d[0] - '0') * 100 + (d[1] - '0') * 10 + (d[2] - '0');
    *keep = line[7] == '1';
    return true;
}

static bool says_close(const char *name, const char *value)
{
    static const char want[] = "connection";
    size_t i = 0;
    for (; name[i] != '\0' && i < sizeof want - 1; i++) {
        if ((name[i] | 0x20) != want[i]) {
            return false;
        }
    }
    return i == sizeof want - 1 && name[i] == '\0' && strcmp(value, "keep-alive") != 0;
}

long host_http_parse_head(uint8_t *buf, size_t len, provisiond_ota_response *resp, bool *keep)
{
    size_t at = 0, end = 0;
    bool first = true;
    for (size_t i = 0; i + 4 <= len && end == 0; i++) {
        if (memcmp(buf + i, "\r\n\r\n", 4) == 0) {
            end = i + 4;
        }
    }
    if (end == 0) {
        return len >= HOST_HEAD_MAX ? -1 : 0;
    }
    memset(resp, 0, sizeof *resp);
    while (at < end - 2) {
        char *line = (char *)buf + at, *name, *value;
        size_t n = 0;
        while (line[n] != '\r') { /* there is one: the end is */
            uint8_t c = (uint8_t)line[n];
            if ((c < ' ' && c != '\t') || c == 0x7F) {
                return -1;
            }
            n++;
        }
        if (line[n + 1] != '\n') {
            return -1;
        }
        at += n + 2;
        if (first) {
            if (!status_line(line, n, resp, keep)) {
                return -1;
            }
            first = false;
            continue;
        }
        if (!split_field(line, n, &name, &value)) {
            return -1;
        }
        if (says_close(name, value)) {
            *keep = false;
        }
        provisiond_ota_response_header(resp, name, value);
    }
    return first ? -1 : (long)end;
}

/* ---- the socket --------------------------------------------------------- */

static provisiond_ota_err wait_for(host_http *h, short what)
{
    struct pollfd p;
    int n;
    p.fd = h->fd;
    p.events = what;
    p.revents = 0;
    do {
        n = poll(&p, 1, h->timeout_ms);
    } while (n < 0 && errno == EINTR);
    return n > 0 ? PROVISIOND_OTA_OK : PROVISIOND_OTA_TRANSPORT;
}

static provisiond_ota_err connect_to(host_http *h)
{
    struct addrinfo hints, *list = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(h->host, h->port, &hints, &list) != 0) {
        return PROVISIOND_OTA_CONNECT;
    }
    for (struct addrinfo *a = list; a != NULL && h->fd < 0; a = a->ai_next) {
        h->fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        if (h->fd >= 0 && connect(h->fd, a->ai_addr, a->ai_addrlen) != 0) {
            (void)close(h->fd);
            h->fd = -1;
        }
    }
    freeaddrinfo(list);
    if (h->fd >= 0) { /* a body follows its head at once */
        int on = 1;
        (void)setsockopt(h->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    h->start = h->end = 0;
    return h->fd >= 0 ? PROVISIOND_OTA_OK : PROVISIOND_OTA_CONNECT;
}

static provisiond_ota_err send_all(host_http *h, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t done;
        if (wait_for(h, POLLOUT) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_TRANSPORT;
        }
        done = send(h->fd, p, n, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return PROVISIOND_OTA_TRANSPORT;
        }
        p += done;
        n -= (size_t)done;
    }
    return PROVISIOND_OTA_OK;
}

static provisiond_ota_err receive(host_http *h, uint8_t *p, size_t n, size_t *got)
{
    ssize_t r;
    *got = 0;
    do {
        if (wait_for(h, POLLIN) != PROVISIOND_OTA_OK) {
            return PROVISIOND_OTA_TRANSPORT;
        }
        r = recv(h->fd, p, n, 0);
    } while (r < 0 && errno == EINTR);
    if (r < 0) {
        return PROVISIOND_OTA_TRANSPORT;
    }
    *got = (size_t)r;
    return PROVISIOND_OTA_OK;
}

/* ---- a request ---------------------------------------------------------- */

static provisiond_ota_err send_request(host_http *h, const provisiond_ota_request *req)
{
    char head[2048], part[512];
    int n = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: %s:%s\r\n", req->post ? "POST" : "GET", req->path,
                     h->host, h->port);
    size_t len = n < 0 ? sizeof head : (size_t)n;
#define ADD(...)                                                                     \
    do {                                                                             \
        n = snprintf(part, sizeof part, __VA_ARGS__);                                \
        if (n < 0 || (size_t)n >= sizeof part || len + (size_t)n >= sizeof head) {   \
            return PROVISIOND_OTA_ARGUMENT;                                          \
        }                                                                            \
        memcpy(head + len, part, (size_t)n);                                         \
        len += (size_t)n;                                                            \
    } while (0)
    if (len >= sizeof head) {
        return PROVISIOND_OTA_ARGUMENT;
    }
    if (req->token != NULL) {
        ADD("Authorization: Bearer %s\r\n", req->token);
    }
    if (req->ranged) {
        ADD("Range: bytes=%lu-%lu\r\n", (unsigned long)req->first, (unsigned long)req->last);
    }
    if (req->if_range != NULL) {
        ADD("If-Range: %s\r\n", req->if_range);
    }
    if (req->post) {
        ADD("Content-Type: application/json\r\nContent-Length: %lu\r\n", (unsigned long)req->body_len);
    }
    ADD("\r\n");
#undef ADD
    if (send_all(h, head, len) != PROVISIOND_OTA_OK) {
        return PROVISIOND_OTA_TRANSPORT;
    }
    return req->post ? send_all(h, req->body, req->body_len) : PROVISIOND_OTA_OK;
}

static provisiond_ota_err read_head(host_http *h, provisiond_ota_response *resp)
{
    h->start = h->end = 0;
    for (int interim = 0;;) {
        size_t got = 0;
        long n = host_http_parse_head(h->buf, h->end, resp, &h->reusable);
        if (n < 0) {
            return PROVISIOND_OTA_PROTOCOL;
        }
        if (n > 0) {
            h->start = (size_t)n;
            if (resp->status >= 200) {
                break;
            }
            if (++interim > 8) {
                return PROVISIOND_OTA_PROTOCOL;
            }
            memmove(h->buf, h->buf + h->start, h->end - h->start); /* 1xx: another head follows */
            h->end -= h->start;
            h->start = 0;
            continue;
        }
        if (receive(h, h->buf + h->end, sizeof h->buf - h->end, &got) != PROVISIOND_OTA_OK || got == 0) {
            return PROVISIOND_OTA_TRANSPORT;
        }
        h->end += got;
    }
    h->left = resp->status == 204 || resp->status == 304 || !resp->has_length ? 0 : resp->length;
    if (resp->bad || (!resp->has_length && resp->status != 204 && resp->status != 304)) {
        h->reusable = false;
    }
    return PROVISIOND_OTA_OK;
}

static provisiond_ota_err http_request(void *ctx, const provisiond_ota_request *req, provisiond_ota_response *resp)
{
    host_http *h = ctx;
    provisiond_ota_err err;
    bool kept = h->fd >= 0;
    for (;;) {
        if (h->fd < 0) {
            err = connect_to(h);
            if (err != PROVISIOND_OTA_OK) {
                return err;
            }
        }
        err = send_request(h, req);
        if (err == PROVISIOND_OTA_OK) {
            err = read_head(h, resp);
        }
        if (err == PROVISIOND_OTA_OK) {
            return err;
        }
        host_http_close(h);
        /* A server may close a kept connection just when it is used again. */
        if (!kept || err != PROVISIOND_OTA_TRANSPORT) {
            return err;
        }
        kept = false;
    }
}

static provisiond_ota_err http_read(void *ctx, uint8_t *buf, size_t len, size_t *got)
{
    host_http *h = ctx;
    provisiond_ota_err err = PROVISIOND_OTA_OK;
    if (len > h->left) {
        len = h->left;
    }
    *got = 0;
    if (len == 0) {
        return PROVISIOND_OTA_OK;
    }
    if (h->end > h->start) {
        *got = h->end - h->start < len ? h->end - h->start : len;
        memcpy(buf, h->buf + h->start, *got);
        h->start += *got;
    } else {
        err = receive(h, buf, len, got);
        if (err == PROVISIOND_OTA_OK && *got == 0) {
            err = PROVISIOND_OTA_TRANSPORT; /* it ends early */
        }
    }
    h->left -= (uint32_t)*got;
    return err;
}

static void http_finish(void *ctx, bool complete)
{
    host_http *h = ctx;
    if (!complete || !h->reusable || h->left != 0 || h->end != h->start) {
        host_http_close(h);
    }
}

const provisiond_ota_transport host_http_transport = {http_request, http_read, http_finish};
