/* SHA-256, ECDSA and random numbers for the client from mbedTLS's PSA interface,
 * which ESP-IDF has from 5.2 on and Debian's libmbedtls too. */
#ifndef PROVISIOND_OTA_PSA_H
#define PROVISIOND_OTA_PSA_H

#include "provisiond_ota.h"

#include "psa/crypto.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    psa_hash_operation_t hash;
} provisiond_ota_psa;

/* The table; its context is a provisiond_ota_psa that provisiond_ota_psa_init made. */
extern const provisiond_ota_crypto provisiond_ota_crypto_psa;

provisiond_ota_err provisiond_ota_psa_init(provisiond_ota_psa *psa);

#ifdef __cplusplus
}
#endif

#endif
