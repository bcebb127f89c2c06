/* The flash table of a simulated board that another process owns. Requests go to
 * standard output and answers come from standard input, so that what the board's own
 * key decides is decided there (internal/otaclient is the other side).
 *
 *   request: operation (1 byte), address, length (4 bytes each, little-endian), and
 *            with 'W', 'V' and 'X' so many bytes
 *   answer:  0 if it went well, 1 if the board found no image, 2 if its secure version
 *            is too low, 3 for everything else (1 byte), length (4), so many bytes
 *
 * Operations: S slots, s state of the slot at address, E erase a sector, W write, R
 * read, B boot from the slot at address, C confirm, L load and V save the record, X
 * a result of the client, as text.
 */
#ifndef PROVISIOND_OTA_HOST_BOARD_H
#define PROVISIOND_OTA_HOST_BOARD_H

#include "provisiond_ota.h"

extern const provisiond_ota_flash host_board; /* needs no context */

/* Tells the other side a result. */
void host_board_result(const char *text);

#endif
