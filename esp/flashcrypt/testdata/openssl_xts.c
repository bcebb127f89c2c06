// Encrypts 1 MiB again and again for a second with OpenSSL's XTS, in data units of 128
// bytes with their addresses as tweaks, and prints bytes per second. For
// BenchmarkOpenSSL; the reversals of flash encryption are not done.
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    enum { SIZE = 1 << 20, UNIT = 128 };
    static unsigned char buf[SIZE];
    unsigned char key[64], iv[16] = {0};
    const EVP_CIPHER *cipher = argc > 1 && atoi(argv[1]) == 256 ? EVP_aes_256_xts() : EVP_aes_128_xts();
    for (int i = 0; i < 64; i++) key[i] = (unsigned char)i;

    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (!ctx || !EVP_EncryptInit_ex(ctx, cipher, NULL, key, iv)) return 1;
    double start = now(), end;
    double bytes = 0;
    do {
        for (uint32_t p = 0; p < SIZE; p += UNIT) {
            int n;
            for (int i = 0; i < 4; i++) iv[i] = (unsigned char)(p >> 8 * i);
            if (!EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, iv) || !EVP_EncryptUpdate(ctx, buf + p, &n, buf + p, UNIT)) return 1;
        }
        bytes += SIZE;
        end = now();
    } while (end - start < 1.0);
    printf("%.0f\n", bytes / (end - start));
    EVP_CIPHER_CTX_free(ctx);
    return 0;
}
