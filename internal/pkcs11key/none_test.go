//go:build !pkcs11 || !cgo

package pkcs11key

import (
	"errors"
	"testing"
)

func TestNotBuilt(t *testing.T) {
	if k, err := Open(URI{Object: "a", Module: "m"}, nil); k != nil || !errors.Is(err, ErrNotBuilt) {
		t.Errorf("got %v", err)
	}
	if Built {
		t.Error("it says that it is built")
	}
}
