//go:build !purego

package flashcrypt

import "golang.org/x/sys/cpu"

// useAsm says that the processor has what aes_amd64.s uses.
var useAsm = cpu.X86.HasAES && cpu.X86.HasSSSE3
