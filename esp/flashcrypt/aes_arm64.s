//go:build !purego

#include "textflag.h"

// An arm64 AES instruction adds the round key first: AESE is AddRoundKey, SubBytes
// and ShiftRows, AESD is AddRoundKey and their inverses; AESMC and AESIMC mix the
// columns. The last round key is left to an exclusive or. Pairs of AESE and AESMC
// stand together: many cores run them as one.

// Bytes of a block in reverse.
DATA reverse16<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse16<>+8(SB)/8, $0x0001020304050607
GLOBL reverse16<>(SB), RODATA|NOPTR, $16

// RotWord of the last word, in all four words.
DATA rotWord<>+0(SB)/8, $0x0c0f0e0d0c0f0e0d
DATA rotWord<>+8(SB)/8, $0x0c0f0e0d0c0f0e0d
GLOBL rotWord<>(SB), RODATA|NOPTR, $16

// PREFIX replaces the words of k by their running XOR. V15 is zero.
#define PREFIX(k, tmp) \
	VEXT $12, k.B16, V15.B16, tmp.B16; \
	VEOR tmp.B16, k.B16, k.B16; \
	VEXT $8, k.B16, V15.B16, tmp.B16; \
	VEOR tmp.B16, k.B16, k.B16

// ROTSUB is the key schedule's step with a round constant: k becomes the round
// key after prev. AESE on four equal words is SubWord, because ShiftRows then
// moves nothing. V13 has rotWord, V14 the constant in all words, V15 is zero.
#define ROTSUB(k, prev, tmp, sub) \
	VTBL V13.B16, [prev.B16], sub.B16; \
	AESE V15.B16, sub.B16; \
	PREFIX(k, tmp); \
	VEOR V14.B16, sub.B16, sub.B16; \
	VEOR sub.B16, k.B16, k.B16

// SUBW is the step of AES-256 without a round constant.
#define SUBW(k, prev, tmp, sub) \
	VDUP prev.S[3], sub.S4; \
	AESE V15.B16, sub.B16; \
	PREFIX(k, tmp); \
	VEOR sub.B16, k.B16, k.B16

// SCHEDULE loads the constants of the key schedule.
#define SCHEDULE(r) \
	MOVD $rotWord<>(SB), r; \
	VLD1 (r), [V13.B16]; \
	VEOR V15.B16, V15.B16, V15.B16

// RCON sets the round constant.
#define RCON(value, r) \
	MOVD value, r; \
	VDUP r, V14.S4

// NEXTRCON doubles it.
#define NEXTRCON VSHL $1, V14.S4, V14.S4

// func expand128(key *byte, enc *roundKeys)
TEXT ·expand128(SB), NOSPLIT, $0-16
	MOVD key+0(FP), R0
	MOVD enc+8(FP), R1
	SCHEDULE(R2)
	RCON($1, R2)
	VLD1 (R0), [V0.B16]
	VST1.P [V0.B16], 16(R1)
	MOVD $8, R3

loop128:
	ROTSUB(V0, V0, V1, V2)
	VST1.P [V0.B16], 16(R1)
	NEXTRCON
	SUB  $1, R3
	CBNZ R3, loop128

	RCON($0x1b, R2)
	ROTSUB(V0, V0, V1, V2)
	VST1.P [V0.B16], 16(R1)
	NEXTRCON
	ROTSUB(V0, V0, V1, V2)
	VST1 [V0.B16], (R1)
	VEOR V0.B16, V0.B16, V0.B16
	VEOR V1.B16, V1.B16, V1.B16
	VEOR V2.B16, V2.B16, V2.B16
	RET

// func expand256(key *byte, enc *roundKeys)
TEXT ·expand256(SB), NOSPLIT, $0-16
	MOVD key+0(FP), R0
	MOVD enc+8(FP), R1
	SCHEDULE(R2)
	RCON($1, R2)
	VLD1 (R0), [V0.B16, V1.B16]
	VST1.P [V0.B16, V1.B16], 32(R1)
	MOVD $6, R3

loop256:
	ROTSUB(V0, V1, V2, V3)
	SUBW(V1, V0, V2, V3)
	VST1.P [V0.B16, V1.B16], 32(R1)
	NEXTRCON
	SUB  $1, R3
	CBNZ R3, loop256

	ROTSUB(V0, V1, V2, V3)
	VST1 [V0.B16], (R1)
	VEOR V0.B16, V0.B16, V0.B16
	VEOR V1.B16, V1.B16, V1.B16
	VEOR V2.B16, V2.B16, V2.B16
	VEOR V3.B16, V3.B16, V3.B16
	RET

// func invertKeys(rounds int, dec, enc *roundKeys)
TEXT ·invertKeys(SB), NOSPLIT, $0-24
	MOVD rounds+0(FP), R0
	MOVD dec+8(FP), R1
	MOVD enc+16(FP), R2
	ADD  R0<<4, R2, R2
	VLD1 (R2), [V0.B16]
	VST1.P [V0.B16], 16(R1)
	SUB  $1, R0

invert:
	SUB    $16, R2
	VLD1   (R2), [V0.B16]
	AESIMC V0.B16, V0.B16
	VST1.P [V0.B16], 16(R1)
	SUB    $1, R0
	CBNZ   R0, invert

	SUB  $16, R2
	VLD1 (R2), [V0.B16]
	VST1 [V0.B16], (R1)
	VEOR V0.B16, V0.B16, V0.B16
	RET

// V26 has reverse16.
#define REVERSE8 \
	VTBL V26.B16, [V0.B16], V0.B16; \
	VTBL V26.B16, [V1.B16], V1.B16; \
	VTBL V26.B16, [V2.B16], V2.B16; \
	VTBL V26.B16, [V3.B16], V3.B16; \
	VTBL V26.B16, [V4.B16], V4.B16; \
	VTBL V26.B16, [V5.B16], V5.B16; \
	VTBL V26.B16, [V6.B16], V6.B16; \
	VTBL V26.B16, [V7.B16], V7.B16

#define TWEAK8 \
	VEOR V16.B16, V0.B16, V0.B16; \
	VEOR V17.B16, V1.B16, V1.B16; \
	VEOR V18.B16, V2.B16, V2.B16; \
	VEOR V19.B16, V3.B16, V3.B16; \
	VEOR V20.B16, V4.B16, V4.B16; \
	VEOR V21.B16, V5.B16, V5.B16; \
	VEOR V22.B16, V6.B16, V6.B16; \
	VEOR V23.B16, V7.B16, V7.B16

// DOUBLE multiplies the tweak in R10 (low) and R11 by α, and puts it into t. R13
// has 0x87.
#define DOUBLE(t) \
	ASR  $63, R11, R12; \
	AND  R13, R12, R12; \
	EXTR $63, R10, R11, R11; \
	EOR  R10<<1, R12, R10; \
	VMOV R10, t.D[0]; \
	VMOV R11, t.D[1]

// XTS does units of 128 bytes: the eight blocks in V0 to V7 with their tweaks in
// V16 to V23, and in V8 the tweak of the next unit, so that its latency costs
// nothing. The block at flash offset off of the unit is block 7 - off/16 of XTS.
//
// R0 rounds, R1 data keys, R2 tweak keys, R3 dst, R4 src, R5 units, R6 address.
#define XTS(first, loop, round, AES, MC) \
	SUB  $1, R0; \
	MOVD $reverse16<>(SB), R7; \
	VLD1 (R7), [V26.B16]; \
	MOVD $0x87, R13; \
	VEOR V8.B16, V8.B16, V8.B16; \
	VMOV R6, V8.D[0]; \
	MOVD R2, R8; \
	MOVD R0, R9; \
first: \
	VLD1.P 16(R8), [V25.B16]; \
	AESE  V25.B16, V8.B16; \
	AESMC V8.B16, V8.B16; \
	SUB   $1, R9; \
	CBNZ  R9, first; \
	VLD1.P 16(R8), [V25.B16]; \
	AESE V25.B16, V8.B16; \
	VLD1 (R8), [V25.B16]; \
	VEOR V25.B16, V8.B16, V8.B16; \
loop: \
	VMOV V8.D[0], R10; \
	VMOV V8.D[1], R11; \
	VMOV V8.B16, V23.B16; \
	VLD1.P 64(R4), [V0.B16, V1.B16, V2.B16, V3.B16]; \
	VLD1.P 64(R4), [V4.B16, V5.B16, V6.B16, V7.B16]; \
	DOUBLE(V22); \
	DOUBLE(V21); \
	DOUBLE(V20); \
	DOUBLE(V19); \
	DOUBLE(V18); \
	DOUBLE(V17); \
	DOUBLE(V16); \
	REVERSE8; \
	TWEAK8; \
	ADDW $128, R6, R6; \
	VEOR V8.B16, V8.B16, V8.B16; \
	VMOV R6, V8.D[0]; \
	MOVD R1, R7; \
	MOVD R2, R8; \
	MOVD R0, R9; \
round: \
	VLD1.P 16(R7), [V24.B16]; \
	VLD1.P 16(R8), [V25.B16]; \
	AESE  V25.B16, V8.B16; \
	AESMC V8.B16, V8.B16; \
	AES   V24.B16, V7.B16; \
	MC    V7.B16, V7.B16; \
	AES   V24.B16, V6.B16; \
	MC    V6.B16, V6.B16; \
	AES   V24.B16, V5.B16; \
	MC    V5.B16, V5.B16; \
	AES   V24.B16, V4.B16; \
	MC    V4.B16, V4.B16; \
	AES   V24.B16, V3.B16; \
	MC    V3.B16, V3.B16; \
	AES   V24.B16, V2.B16; \
	MC    V2.B16, V2.B16; \
	AES   V24.B16, V1.B16; \
	MC    V1.B16, V1.B16; \
	AES   V24.B16, V0.B16; \
	MC    V0.B16, V0.B16; \
	SUB   $1, R9; \
	CBNZ  R9, round; \
	VLD1.P 16(R7), [V24.B16]; \
	VLD1.P 16(R8), [V25.B16]; \
	AESE V25.B16, V8.B16; \
	AES  V24.B16, V7.B16; \
	AES  V24.B16, V6.B16; \
	AES  V24.B16, V5.B16; \
	AES  V24.B16, V4.B16; \
	AES  V24.B16, V3.B16; \
	AES  V24.B16, V2.B16; \
	AES  V24.B16, V1.B16; \
	AES  V24.B16, V0.B16; \
	VLD1 (R7), [V24.B16]; \
	VLD1 (R8), [V25.B16]; \
	VEOR V25.B16, V8.B16, V8.B16; \
	VEOR V24.B16, V7.B16, V7.B16; \
	VEOR V24.B16, V6.B16, V6.B16; \
	VEOR V24.B16, V5.B16, V5.B16; \
	VEOR V24.B16, V4.B16, V4.B16; \
	VEOR V24.B16, V3.B16, V3.B16; \
	VEOR V24.B16, V2.B16, V2.B16; \
	VEOR V24.B16, V1.B16, V1.B16; \
	VEOR V24.B16, V0.B16, V0.B16; \
	TWEAK8; \
	REVERSE8; \
	VST1.P [V0.B16, V1.B16, V2.B16, V3.B16], 64(R3); \
	VST1.P [V4.B16, V5.B16, V6.B16, V7.B16], 64(R3); \
	SUB  $1, R5; \
	CBNZ R5, loop; \
	VEOR V24.B16, V24.B16, V24.B16; \
	VEOR V25.B16, V25.B16, V25.B16

// func xtsEncrypt(rounds int, data, tweak *roundKeys, dst, src *byte, units int, addr uint32)
TEXT ·xtsEncrypt(SB), NOSPLIT, $0-52
	MOVD  rounds+0(FP), R0
	MOVD  data+8(FP), R1
	MOVD  tweak+16(FP), R2
	MOVD  dst+24(FP), R3
	MOVD  src+32(FP), R4
	MOVD  units+40(FP), R5
	MOVWU addr+48(FP), R6
	XTS(encFirst, encLoop, encRound, AESE, AESMC)
	RET

// func xtsDecrypt(rounds int, data, tweak *roundKeys, dst, src *byte, units int, addr uint32)
TEXT ·xtsDecrypt(SB), NOSPLIT, $0-52
	MOVD  rounds+0(FP), R0
	MOVD  data+8(FP), R1
	MOVD  tweak+16(FP), R2
	MOVD  dst+24(FP), R3
	MOVD  src+32(FP), R4
	MOVD  units+40(FP), R5
	MOVWU addr+48(FP), R6
	XTS(decFirst, decLoop, decRound, AESD, AESIMC)
	RET

// The ESP32 scheme. R0 has the keys, R1 the schedules, R2 dst, R3 src, R4 groups.
//
// The keys of four units are V16, V20 (first and second half), V17, V21, V18, V22
// and V19, V23. Their round keys go to the schedules, 64 bytes per round.

#define ROTSUB4 \
	ROTSUB(V16, V20, V8, V9); \
	ROTSUB(V17, V21, V10, V11); \
	ROTSUB(V18, V22, V12, V24); \
	ROTSUB(V19, V23, V25, V27)

#define SUB4 \
	SUBW(V20, V16, V8, V9); \
	SUBW(V21, V17, V10, V11); \
	SUBW(V22, V18, V12, V24); \
	SUBW(V23, V19, V25, V27)

#define PUTFIRST4 VST1.P [V16.B16, V17.B16, V18.B16, V19.B16], 64(R5)
#define PUTSECOND4 VST1.P [V20.B16, V21.B16, V22.B16, V23.B16], 64(R5)

// The same with the keys of the equivalent inverse cipher.
#define INVFIRST4 \
	AESIMC V16.B16, V8.B16; \
	AESIMC V17.B16, V9.B16; \
	AESIMC V18.B16, V10.B16; \
	AESIMC V19.B16, V11.B16; \
	VST1.P [V8.B16, V9.B16, V10.B16, V11.B16], 64(R5)

#define INVSECOND4 \
	AESIMC V20.B16, V8.B16; \
	AESIMC V21.B16, V9.B16; \
	AESIMC V22.B16, V10.B16; \
	AESIMC V23.B16, V11.B16; \
	VST1.P [V8.B16, V9.B16, V10.B16, V11.B16], 64(R5)

// EXPAND4 sets up the schedules for the four keys at R0, and leaves R5 at their
// last round.
#define EXPAND4(expand, FIRST, SECOND) \
	RCON($1, R6); \
	VLD1.P 16(R0), [V16.B16]; \
	VLD1.P 16(R0), [V20.B16]; \
	VLD1.P 16(R0), [V17.B16]; \
	VLD1.P 16(R0), [V21.B16]; \
	VLD1.P 16(R0), [V18.B16]; \
	VLD1.P 16(R0), [V22.B16]; \
	VLD1.P 16(R0), [V19.B16]; \
	VLD1.P 16(R0), [V23.B16]; \
	MOVD R1, R5; \
	PUTFIRST4; \
	SECOND; \
	MOVD $6, R6; \
expand: \
	ROTSUB4; \
	FIRST; \
	SUB4; \
	SECOND; \
	NEXTRCON; \
	SUB  $1, R6; \
	CBNZ R6, expand; \
	ROTSUB4; \
	VST1 [V16.B16, V17.B16, V18.B16, V19.B16], (R5)

#define LOAD8 \
	VLD1.P 64(R3), [V0.B16, V1.B16, V2.B16, V3.B16]; \
	VLD1.P 64(R3), [V4.B16, V5.B16, V6.B16, V7.B16]

// GET4 loads one round's keys of the four units.
#define GET4 VLD1 (R5), [V8.B16, V9.B16, V10.B16, V11.B16]

#define ROUND8(AES, MC) \
	AES V8.B16, V0.B16; \
	MC  V0.B16, V0.B16; \
	AES V8.B16, V1.B16; \
	MC  V1.B16, V1.B16; \
	AES V9.B16, V2.B16; \
	MC  V2.B16, V2.B16; \
	AES V9.B16, V3.B16; \
	MC  V3.B16, V3.B16; \
	AES V10.B16, V4.B16; \
	MC  V4.B16, V4.B16; \
	AES V10.B16, V5.B16; \
	MC  V5.B16, V5.B16; \
	AES V11.B16, V6.B16; \
	MC  V6.B16, V6.B16; \
	AES V11.B16, V7.B16; \
	MC  V7.B16, V7.B16

#define LAST8(AES) \
	AES V8.B16, V0.B16; \
	AES V8.B16, V1.B16; \
	AES V9.B16, V2.B16; \
	AES V9.B16, V3.B16; \
	AES V10.B16, V4.B16; \
	AES V10.B16, V5.B16; \
	AES V11.B16, V6.B16; \
	AES V11.B16, V7.B16

#define XOR8 \
	VEOR V8.B16, V0.B16, V0.B16; \
	VEOR V8.B16, V1.B16, V1.B16; \
	VEOR V9.B16, V2.B16, V2.B16; \
	VEOR V9.B16, V3.B16, V3.B16; \
	VEOR V10.B16, V4.B16, V4.B16; \
	VEOR V10.B16, V5.B16, V5.B16; \
	VEOR V11.B16, V6.B16, V6.B16; \
	VEOR V11.B16, V7.B16, V7.B16

#define ESP32NEXT(loop) \
	REVERSE8; \
	VST1.P [V0.B16, V1.B16, V2.B16, V3.B16], 64(R2); \
	VST1.P [V4.B16, V5.B16, V6.B16, V7.B16], 64(R2); \
	SUB  $1, R4; \
	CBNZ R4, loop; \
	WIPE

// WIPE clears what held keys.
#define WIPE \
	VEOR V8.B16, V8.B16, V8.B16; \
	VEOR V9.B16, V9.B16, V9.B16; \
	VEOR V10.B16, V10.B16, V10.B16; \
	VEOR V11.B16, V11.B16, V11.B16; \
	VEOR V12.B16, V12.B16, V12.B16; \
	VEOR V16.B16, V16.B16, V16.B16; \
	VEOR V17.B16, V17.B16, V17.B16; \
	VEOR V18.B16, V18.B16, V18.B16; \
	VEOR V19.B16, V19.B16, V19.B16; \
	VEOR V20.B16, V20.B16, V20.B16; \
	VEOR V21.B16, V21.B16, V21.B16; \
	VEOR V22.B16, V22.B16, V22.B16; \
	VEOR V23.B16, V23.B16, V23.B16; \
	VEOR V24.B16, V24.B16, V24.B16; \
	VEOR V25.B16, V25.B16, V25.B16; \
	VEOR V27.B16, V27.B16, V27.B16

#define ESP32CONSTANTS \
	MOVD $reverse16<>(SB), R5; \
	VLD1 (R5), [V26.B16]; \
	SCHEDULE(R5)

// func esp32Encrypt(keys *keyWords, schedules *esp32Schedules, dst, src *byte, groups int)
TEXT ·esp32Encrypt(SB), NOSPLIT, $0-40
	MOVD keys+0(FP), R0
	MOVD schedules+8(FP), R1
	MOVD dst+16(FP), R2
	MOVD src+24(FP), R3
	MOVD groups+32(FP), R4
	ESP32CONSTANTS

espEnc:
	EXPAND4(espEncExpand, INVFIRST4, INVSECOND4)
	LOAD8
	REVERSE8
	MOVD $13, R6

espEncRound:
	GET4
	ROUND8(AESD, AESIMC)
	SUB  $64, R5
	SUB  $1, R6
	CBNZ R6, espEncRound
	GET4
	LAST8(AESD)
	SUB  $64, R5
	GET4
	XOR8
	ESP32NEXT(espEnc)
	RET

// func esp32Decrypt(keys *keyWords, schedules *esp32Schedules, dst, src *byte, groups int)
TEXT ·esp32Decrypt(SB), NOSPLIT, $0-40
	MOVD keys+0(FP), R0
	MOVD schedules+8(FP), R1
	MOVD dst+16(FP), R2
	MOVD src+24(FP), R3
	MOVD groups+32(FP), R4
	ESP32CONSTANTS

espDec:
	EXPAND4(espDecExpand, PUTFIRST4, PUTSECOND4)
	LOAD8
	REVERSE8
	MOVD R1, R5
	MOVD $13, R6

espDecRound:
	GET4
	ROUND8(AESE, AESMC)
	ADD  $64, R5
	SUB  $1, R6
	CBNZ R6, espDecRound
	GET4
	LAST8(AESE)
	ADD  $64, R5
	GET4
	XOR8
	ESP32NEXT(espDec)
	RET
