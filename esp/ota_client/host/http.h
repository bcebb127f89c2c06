/* HTTP/1.1 over a socket, for the host: one server, one connection, one request at
 * a time. It takes only answers with a Content-Length (or none of 204 and 304). */
#ifndef PROVISIOND_OTA_HOST_HTTP_H
#define PROVISIOND_OTA_HOST_HTTP_H

#include "provisiond_ota.h"

#define HOST_HEAD_MAX 4096u

typedef struct {
    const char *host, *port;
    int timeout_ms; /* of each wait for the peer */
    int fd;         /* -1: not connected */
    uint32_t left;  /* of the body */
    bool reusable;
    uint8_t buf[HOST_HEAD_MAX]; /* the head, and what came with it of the body */
    size_t start, end;
} host_http;

void host_http_init(host_http *h, const char *host, const char *port, int timeout_ms);
void host_http_close(host_http *h);

extern const provisiond_ota_transport host_http_transport;

/* Parses an answer's head if buf holds all of it. It gives its length, 0 if the end
 * is still to come, and -1 if it is none. keep is whether the connection stays. */
long host_http_parse_head(uint8_t *buf, size_t len, provisiond_ota_response *resp, bool *keep);

#endif
