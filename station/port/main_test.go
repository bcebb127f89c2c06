//go:build linux

package port_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// helperEnv makes the test binary another process that holds a tty: "open" by
// this package, "excl" as a program that knows TIOCEXCL only, "flock" as one
// that knows flock only.
const helperEnv = "PROVISIOND_TEST_HOLD"

func TestMain(m *testing.M) {
	if how := os.Getenv(helperEnv); how != "" {
		if err := hold(context.Background(), how, os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test lets go
		return
	}
	goleak.VerifyTestMain(m)
}
