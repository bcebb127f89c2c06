//go:build !purego

#include "textflag.h"

// Bytes of a block in reverse.
DATA reverse16<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse16<>+8(SB)/8, $0x0001020304050607
GLOBL reverse16<>(SB), RODATA|NOPTR, $16

// What a carry out of the low and of the high half of a tweak adds.
DATA alpha<>+0(SB)/8, $0x0000000000000087
DATA alpha<>+8(SB)/8, $0x0000000000000001
GLOBL alpha<>(SB), RODATA|NOPTR, $16

// RotWord of the last word, in all four words.
DATA rotWord<>+0(SB)/8, $0x0c0f0e0d0c0f0e0d
DATA rotWord<>+8(SB)/8, $0x0c0f0e0d0c0f0e0d
GLOBL rotWord<>(SB), RODATA|NOPTR, $16

// The round constant 1 in all four words.
DATA rcon<>+0(SB)/8, $0x0000000100000001
DATA rcon<>+8(SB)/8, $0x0000000100000001
GLOBL rcon<>(SB), RODATA|NOPTR, $16

// The round constant 0x1b in all four words.
DATA rcon1b<>+0(SB)/8, $0x0000001b0000001b
DATA rcon1b<>+8(SB)/8, $0x0000001b0000001b
GLOBL rcon1b<>(SB), RODATA|NOPTR, $16

// PREFIX replaces the words of k by their running XOR.
#define PREFIX(k, tmp) \
	MOVO   k, tmp; \
	PSLLDQ $4, tmp; \
	PXOR   tmp, k; \
	MOVO   k, tmp; \
	PSLLDQ $8, tmp; \
	PXOR   tmp, k

// ROTSUB is the key schedule's step with a round constant: k becomes the round
// key after prev. AESENCLAST on four equal words is SubWord, because ShiftRows
// then moves nothing; it XORs the constant for nothing. X13 has rotWord, X14
// the constant.
#define ROTSUB(k, prev, tmp, sub) \
	MOVO       prev, sub; \
	PSHUFB     X13, sub; \
	AESENCLAST X14, sub; \
	PREFIX(k, tmp); \
	PXOR       sub, k

// SUB is the step of AES-256 without a round constant. X15 is zero.
#define SUB(k, prev, tmp, sub) \
	PSHUFD     $0xff, prev, sub; \
	AESENCLAST X15, sub; \
	PREFIX(k, tmp); \
	PXOR       sub, k

// func expand128(key *byte, enc *roundKeys)
TEXT ·expand128(SB), NOSPLIT, $0-16
	MOVQ  key+0(FP), AX
	MOVQ  enc+8(FP), BX
	MOVOU rotWord<>(SB), X13
	MOVOU rcon<>(SB), X14
	MOVOU (AX), X0
	MOVOU X0, (BX)
	MOVQ  $8, CX

loop128:
	ADDQ  $16, BX
	ROTSUB(X0, X0, X1, X2)
	MOVOU X0, (BX)
	PSLLL $1, X14
	DECQ  CX
	JNZ   loop128

	MOVOU rcon1b<>(SB), X14
	ROTSUB(X0, X0, X1, X2)
	MOVOU X0, 16(BX)
	PSLLL $1, X14
	ROTSUB(X0, X0, X1, X2)
	MOVOU X0, 32(BX)
	PXOR  X0, X0
	PXOR  X1, X1
	PXOR  X2, X2
	RET

// func expand256(key *byte, enc *roundKeys)
TEXT ·expand256(SB), NOSPLIT, $0-16
	MOVQ  key+0(FP), AX
	MOVQ  enc+8(FP), BX
	MOVOU rotWord<>(SB), X13
	MOVOU rcon<>(SB), X14
	PXOR  X15, X15
	MOVOU (AX), X0
	MOVOU 16(AX), X1
	MOVOU X0, (BX)
	MOVOU X1, 16(BX)
	MOVQ  $6, CX

loop256:
	ADDQ  $32, BX
	ROTSUB(X0, X1, X2, X3)
	MOVOU X0, (BX)
	SUB(X1, X0, X2, X3)
	MOVOU X1, 16(BX)
	PSLLL $1, X14
	DECQ  CX
	JNZ   loop256

	ROTSUB(X0, X1, X2, X3)
	MOVOU X0, 32(BX)
	PXOR  X0, X0
	PXOR  X1, X1
	PXOR  X2, X2
	PXOR  X3, X3
	RET

// func invertKeys(rounds int, dec, enc *roundKeys)
TEXT ·invertKeys(SB), NOSPLIT, $0-24
	MOVQ   rounds+0(FP), CX
	MOVQ   dec+8(FP), DI
	MOVQ   enc+16(FP), SI
	MOVQ   CX, AX
	SHLQ   $4, AX
	ADDQ   AX, SI
	MOVOU  (SI), X0
	MOVOU  X0, (DI)
	DECQ   CX

invert:
	SUBQ   $16, SI
	ADDQ   $16, DI
	MOVOU  (SI), X0
	AESIMC X0, X0
	MOVOU  X0, (DI)
	DECQ   CX
	JNZ    invert

	MOVOU -16(SI), X0
	MOVOU X0, 16(DI)
	PXOR  X0, X0
	RET

// LOAD takes the block at flash offset off of the unit, which is block j = 7 -
// off/16 of XTS, and adds its tweak, X9, which it keeps on the stack.
#define LOAD(off, x) \
	MOVOU  off(SI), x; \
	PSHUFB X13, x; \
	PXOR   X9, x; \
	MOVOU  X9, off(SP)

// DOUBLE multiplies the tweak X9 by α. X12 has alpha.
#define DOUBLE \
	PSHUFD $0x13, X9, X10; \
	PSRAL  $31, X10; \
	PAND   X12, X10; \
	PADDQ  X9, X9; \
	PXOR   X10, X9

#define STORE(off, x) \
	MOVOU  off(SP), X10; \
	PXOR   X10, x; \
	PSHUFB X13, x; \
	MOVOU  x, off(DI)

// XTS does units of 128 bytes: the eight blocks in X0 to X7, and in X8 the tweak
// of the next unit, so that its latency costs nothing.
//
// R8 rounds, R9 data keys, R10 tweak keys, DI dst, SI src, DX units, R11 address.
#define XTS(first, loop, round, ENC, ENCLAST) \
	DECQ   R8; \
	MOVOU  reverse16<>(SB), X13; \
	MOVOU  alpha<>(SB), X12; \
	MOVQ   R11, X8; \
	MOVOU  (R10), X15; \
	PXOR   X15, X8; \
	LEAQ   16(R10), BX; \
	MOVQ   R8, CX; \
first: \
	MOVOU  (BX), X15; \
	AESENC X15, X8; \
	ADDQ   $16, BX; \
	DECQ   CX; \
	JNZ    first; \
	MOVOU  (BX), X15; \
	AESENCLAST X15, X8; \
loop: \
	MOVO   X8, X9; \
	MOVOU  (R9), X14; \
	LOAD(112, X7); \
	DOUBLE; \
	LOAD(96, X6); \
	DOUBLE; \
	LOAD(80, X5); \
	DOUBLE; \
	LOAD(64, X4); \
	DOUBLE; \
	LOAD(48, X3); \
	DOUBLE; \
	LOAD(32, X2); \
	DOUBLE; \
	LOAD(16, X1); \
	DOUBLE; \
	LOAD(0, X0); \
	ADDL   $128, R11; \
	MOVQ   R11, X8; \
	MOVOU  (R10), X15; \
	PXOR   X15, X8; \
	PXOR   X14, X0; \
	PXOR   X14, X1; \
	PXOR   X14, X2; \
	PXOR   X14, X3; \
	PXOR   X14, X4; \
	PXOR   X14, X5; \
	PXOR   X14, X6; \
	PXOR   X14, X7; \
	LEAQ   16(R9), AX; \
	LEAQ   16(R10), BX; \
	MOVQ   R8, CX; \
round: \
	MOVOU  (AX), X14; \
	MOVOU  (BX), X15; \
	AESENC X15, X8; \
	ENC    X14, X7; \
	ENC    X14, X6; \
	ENC    X14, X5; \
	ENC    X14, X4; \
	ENC    X14, X3; \
	ENC    X14, X2; \
	ENC    X14, X1; \
	ENC    X14, X0; \
	ADDQ   $16, AX; \
	ADDQ   $16, BX; \
	DECQ   CX; \
	JNZ    round; \
	MOVOU  (AX), X14; \
	MOVOU  (BX), X15; \
	AESENCLAST X15, X8; \
	ENCLAST X14, X7; \
	ENCLAST X14, X6; \
	ENCLAST X14, X5; \
	ENCLAST X14, X4; \
	ENCLAST X14, X3; \
	ENCLAST X14, X2; \
	ENCLAST X14, X1; \
	ENCLAST X14, X0; \
	STORE(112, X7); \
	STORE(96, X6); \
	STORE(80, X5); \
	STORE(64, X4); \
	STORE(48, X3); \
	STORE(32, X2); \
	STORE(16, X1); \
	STORE(0, X0); \
	ADDQ   $128, SI; \
	ADDQ   $128, DI; \
	DECQ   DX; \
	JNZ    loop; \
	PXOR   X14, X14; \
	PXOR   X15, X15

// func xtsEncrypt(rounds int, data, tweak *roundKeys, dst, src *byte, units int, addr uint32)
TEXT ·xtsEncrypt(SB), NOSPLIT, $128-52
	MOVQ rounds+0(FP), R8
	MOVQ data+8(FP), R9
	MOVQ tweak+16(FP), R10
	MOVQ dst+24(FP), DI
	MOVQ src+32(FP), SI
	MOVQ units+40(FP), DX
	MOVL addr+48(FP), R11
	XTS(encFirst, encLoop, encRound, AESENC, AESENCLAST)
	RET

// func xtsDecrypt(rounds int, data, tweak *roundKeys, dst, src *byte, units int, addr uint32)
TEXT ·xtsDecrypt(SB), NOSPLIT, $128-52
	MOVQ rounds+0(FP), R8
	MOVQ data+8(FP), R9
	MOVQ tweak+16(FP), R10
	MOVQ dst+24(FP), DI
	MOVQ src+32(FP), SI
	MOVQ units+40(FP), DX
	MOVL addr+48(FP), R11
	XTS(decFirst, decLoop, decRound, AESDEC, AESDECLAST)
	RET

// The ESP32 scheme. AX has the keys, R8 the schedules, DI dst, SI src, DX groups.
//
// The keys of four units are X0, X4 (first and second half), X1, X5, X2, X6 and X3,
// X7. Their round keys go to the schedules, 64 bytes per round.

#define ROTSUB4 \
	ROTSUB(X0, X4, X8, X9); \
	ROTSUB(X1, X5, X10, X11); \
	ROTSUB(X2, X6, X8, X9); \
	ROTSUB(X3, X7, X10, X11)

#define SUB4 \
	SUB(X4, X0, X8, X9); \
	SUB(X5, X1, X10, X11); \
	SUB(X6, X2, X8, X9); \
	SUB(X7, X3, X10, X11)

#define PUT4(off, a, b, c, d) \
	MOVOU a, off(BX); \
	MOVOU b, off+16(BX); \
	MOVOU c, off+32(BX); \
	MOVOU d, off+48(BX)

// PUTINV4 stores the keys of the equivalent inverse cipher.
#define PUTINV4(off, a, b, c, d) \
	AESIMC a, X8; \
	AESIMC b, X9; \
	AESIMC c, X10; \
	AESIMC d, X11; \
	PUT4(off, X8, X9, X10, X11)

// EXPAND4 sets up the schedules for the four keys at AX.
#define EXPAND4(expand, PUT) \
	MOVOU rcon<>(SB), X14; \
	MOVOU (AX), X0; \
	MOVOU 16(AX), X4; \
	MOVOU 32(AX), X1; \
	MOVOU 48(AX), X5; \
	MOVOU 64(AX), X2; \
	MOVOU 80(AX), X6; \
	MOVOU 96(AX), X3; \
	MOVOU 112(AX), X7; \
	MOVQ  R8, BX; \
	PUT4(0, X0, X1, X2, X3); \
	PUT(64, X4, X5, X6, X7); \
	MOVQ  $6, CX; \
expand: \
	ADDQ  $128, BX; \
	ROTSUB4; \
	PUT(0, X0, X1, X2, X3); \
	SUB4; \
	PUT(64, X4, X5, X6, X7); \
	PSLLL $1, X14; \
	DECQ  CX; \
	JNZ   expand; \
	ROTSUB4; \
	PUT4(128, X0, X1, X2, X3)

#define GET4(off) \
	MOVOU off(BX), X8; \
	MOVOU off+16(BX), X9; \
	MOVOU off+32(BX), X10; \
	MOVOU off+48(BX), X11

#define OP8(OP) \
	OP X8, X0; \
	OP X8, X1; \
	OP X9, X2; \
	OP X9, X3; \
	OP X10, X4; \
	OP X10, X5; \
	OP X11, X6; \
	OP X11, X7

#define LOAD8 \
	MOVOU 0(SI), X0; \
	MOVOU 16(SI), X1; \
	MOVOU 32(SI), X2; \
	MOVOU 48(SI), X3; \
	MOVOU 64(SI), X4; \
	MOVOU 80(SI), X5; \
	MOVOU 96(SI), X6; \
	MOVOU 112(SI), X7

#define REVERSE8 \
	PSHUFB X12, X0; \
	PSHUFB X12, X1; \
	PSHUFB X12, X2; \
	PSHUFB X12, X3; \
	PSHUFB X12, X4; \
	PSHUFB X12, X5; \
	PSHUFB X12, X6; \
	PSHUFB X12, X7

#define STORE8 \
	MOVOU X0, 0(DI); \
	MOVOU X1, 16(DI); \
	MOVOU X2, 32(DI); \
	MOVOU X3, 48(DI); \
	MOVOU X4, 64(DI); \
	MOVOU X5, 80(DI); \
	MOVOU X6, 96(DI); \
	MOVOU X7, 112(DI)

#define ESP32CONSTANTS \
	MOVOU reverse16<>(SB), X12; \
	MOVOU rotWord<>(SB), X13; \
	PXOR  X15, X15

#define ESP32NEXT(loop) \
	REVERSE8; \
	STORE8; \
	ADDQ $128, AX; \
	ADDQ $128, SI; \
	ADDQ $128, DI; \
	DECQ DX; \
	JNZ  loop; \
	PXOR X8, X8; \
	PXOR X9, X9; \
	PXOR X10, X10; \
	PXOR X11, X11

// func esp32Encrypt(keys *keyWords, schedules *esp32Schedules, dst, src *byte, groups int)
TEXT ·esp32Encrypt(SB), NOSPLIT, $0-40
	MOVQ keys+0(FP), AX
	MOVQ schedules+8(FP), R8
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	MOVQ groups+32(FP), DX
	ESP32CONSTANTS

espEnc:
	EXPAND4(espEncExpand, PUTINV4)
	LOAD8
	REVERSE8
	GET4(128)
	OP8(PXOR)
	ADDQ $64, BX
	MOVQ $13, CX

espEncRound:
	GET4(0)
	OP8(AESDEC)
	SUBQ $64, BX
	DECQ CX
	JNZ  espEncRound
	GET4(0)
	OP8(AESDECLAST)
	ESP32NEXT(espEnc)
	RET

// func esp32Decrypt(keys *keyWords, schedules *esp32Schedules, dst, src *byte, groups int)
TEXT ·esp32Decrypt(SB), NOSPLIT, $0-40
	MOVQ keys+0(FP), AX
	MOVQ schedules+8(FP), R8
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	MOVQ groups+32(FP), DX
	ESP32CONSTANTS

espDec:
	EXPAND4(espDecExpand, PUT4)
	LOAD8
	REVERSE8
	MOVQ R8, BX
	GET4(0)
	OP8(PXOR)
	MOVQ $13, CX

espDecRound:
	ADDQ $64, BX
	GET4(0)
	OP8(AESENC)
	DECQ CX
	JNZ  espDecRound
	GET4(64)
	OP8(AESENCLAST)
	ESP32NEXT(espDec)
	RET
