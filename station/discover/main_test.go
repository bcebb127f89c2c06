package discover

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plain compares ports by what is exported.
var plain = cmp.Options{cmpopts.IgnoreUnexported(Port{})}
