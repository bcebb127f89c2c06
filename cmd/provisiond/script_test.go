package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/internal/sample"
)

// TestScripts runs testdata/script/*.txtar with the built provisiond.
func TestScripts(t *testing.T) {
	t.Parallel()
	dir := filepath.Dir(theBinary(t))
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", dir+string(filepath.ListSeparator)+e.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":    cmdCode,
			"sample":  cmdSample,
			"hex":     cmdHex,
			"cmphex":  cmdCmpHex,
			"flip":    cmdFlip,
			"same":    cmdSame,
			"keypair": cmdKeyPair,
		},
	})
}

// cmdCode runs a program and demands its exit code: code 2 provisiond demo --units 0.
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARGS")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var ee *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &ee) {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// cmdSample writes a product, with an application of the given size or of the
// usual one: sample DIR CHIP PROFILE [BYTES].
func cmdSample(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args) > 4 {
		ts.Fatalf("usage: sample DIR CHIP PROFILE [BYTES]")
	}
	m, err := chip.ByName(args[1])
	ts.Check(err)
	p := sample.Product{Chip: m, Profile: args[2], Baud: 921600}
	if len(args) == 4 {
		p.AppSize, err = strconv.Atoi(args[3])
		ts.Check(err)
	}
	ts.Check(os.MkdirAll(ts.MkAbs(args[0]), 0o755))
	_, err = sample.Write(ts.MkAbs(args[0]), p)
	ts.Check(err)
}

// cmdHex writes a file: hex FILE 00ff…, or hex FILE count N for 00 01 02 ….
func cmdHex(ts *testscript.TestScript, _ bool, args []string) {
	var b []byte
	if len(args) == 3 && args[1] == "count" {
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		for i := range n {
			b = append(b, byte(i))
		}
	} else {
		var err error
		b, err = hex.DecodeString(args[1])
		ts.Check(err)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// cmdCmpHex compares a file with its bytes in hex.
func cmdCmpHex(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := hex.EncodeToString(b); got != args[1] {
		ts.Fatalf("%s holds\n%s, want\n%s", args[0], got, args[1])
	}
}

// cmdFlip turns one bit of every copy of a text in a file: flip FILE TEXT.
func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	n := 0
	for at := 0; ; n++ {
		i := bytes.Index(b[at:], []byte(args[1]))
		if i < 0 {
			break
		}
		b[at+i] ^= 1
		at += i + 1
	}
	if n == 0 {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// cmdSame demands that two files are equal, also if they are no text.
func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("%s and %s: equal is %v", args[0], args[1], !neg)
	}
}

// cmdKeyPair makes a signing key, NAME.pem and NAME.pub: keypair NAME SCHEME.
func cmdKeyPair(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keypair NAME SCHEME")
	}
	private, public, err := newKeyPair(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pem"), private, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), public, 0o666))
}

// newKeyPair makes a signing key in PEM: rsa3072, ecdsa256 or ecdsa384.
func newKeyPair(scheme string) (private, public []byte, err error) {
	var key crypto.Signer
	switch scheme {
	case "rsa3072":
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case "ecdsa256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		err = fmt.Errorf("there is no scheme %q", scheme)
	}
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	pub, err := secureboot.NewPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	public, err = pub.PEM()
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), public, err
}
