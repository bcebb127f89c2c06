//go:build !purego

package flashcrypt

import "golang.org/x/sys/cpu"

// useAsm says that the processor has what aes_arm64.s uses: AES beside ASIMD,
// which every arm64 that runs Go has.
var useAsm = cpu.ARM64.HasAES
