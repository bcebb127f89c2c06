/* The cryptography table over PSA. This file is the same on the device and on the
 * host, where the tests run it. mbedTLS takes heap for its big numbers while a
 * signature is checked and gives it back. */
#include "provisiond_ota_psa.h"

#include <string.h>

static provisiond_ota_err of(psa_status_t status)
{
    return status == PSA_SUCCESS ? PROVISIOND_OTA_OK : PROVISIOND_OTA_CRYPTO;
}

provisiond_ota_err provisiond_ota_psa_init(provisiond_ota_psa *psa)
{
    psa->hash = psa_hash_operation_init();
    return of(psa_crypto_init()); /* again is harmless */
}

static provisiond_ota_err generate(void *ctx, uint8_t *out, size_t len)
{
    (void)ctx;
    return of(psa_generate_random(out, len));
}

static provisiond_ota_err hash_start(void *ctx)
{
    provisiond_ota_psa *psa = ctx;
    (void)psa_hash_abort(&psa->hash); /* one that an error left open */
    return of(psa_hash_setup(&psa->hash, PSA_ALG_SHA_256));
}

static provisiond_ota_err hash_update(void *ctx, const uint8_t *data, size_t len)
{
    provisiond_ota_psa *psa = ctx;
    return of(psa_hash_update(&psa->hash, data, len));
}

static provisiond_ota_err hash_finish(void *ctx, uint8_t out[32])
{
    provisiond_ota_psa *psa = ctx;
    size_t n = 0;
    provisiond_ota_err err = of(psa_hash_finish(&psa->hash, out, 32, &n));
    return err == PROVISIOND_OTA_OK && n != 32 ? PROVISIOND_OTA_CRYPTO : err;
}

static provisiond_ota_err verify(void *ctx, const uint8_t key[64], const uint8_t hash[32], const uint8_t signature[64])
{
    psa_key_attributes_t attributes = psa_key_attributes_init();
    psa_key_id_t id = 0;
    psa_status_t status;
    uint8_t point[65];

    (void)ctx;
    point[0] = 0x04; /* uncompressed */
    memcpy(point + 1, key, 64);
    psa_set_key_usage_flags(&attributes, PSA_KEY_USAGE_VERIFY_HASH);
    psa_set_key_algorithm(&attributes, PSA_ALG_ECDSA(PSA_ALG_SHA_256));
    psa_set_key_type(&attributes, PSA_KEY_TYPE_ECC_PUBLIC_KEY(PSA_ECC_FAMILY_SECP_R1));
    psa_set_key_bits(&attributes, 256);
    if (psa_import_key(&attributes, point, sizeof point, &id) != PSA_SUCCESS) {
        return PROVISIOND_OTA_CRYPTO;
    }
    status = psa_verify_hash(id, PSA_ALG_ECDSA(PSA_ALG_SHA_256), hash, 32, signature, 64);
    (void)psa_destroy_key(id);
    if (status == PSA_ERROR_INVALID_SIGNATURE) {
        return PROVISIOND_OTA_SIGNATURE;
    }
    return of(status);
}

const provisiond_ota_crypto provisiond_ota_crypto_psa = {
    generate, hash_start, hash_update, hash_finish, verify,
};
