//go:build (!amd64 && !arm64) || purego

package flashcrypt

// There is no assembly for this platform: crypto/aes does the work.
const useAsm = false

type xtsSchedule struct{}

func (*xtsSchedule) expand([]byte, []byte) {}

func xtsUnits(*xtsSchedule, []byte, []byte, uint32, bool) {}

func (*esp32Keys) cryptAsm([]byte, []byte, uint32, bool) {}
