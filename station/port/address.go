package port

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
)

// Scheme is the kind of an address.
type Scheme string

// The kinds of address. A tty has no scheme in front.
const (
	TTY     Scheme = ""
	Socket  Scheme = "socket"
	RFC2217 Scheme = "rfc2217"
	Sim     Scheme = "sim"
)

// Address is a parsed port name. Its String is exactly what was parsed.
type Address struct {
	Scheme Scheme
	Path   string  // TTY: the device
	Host   string  // Socket, RFC2217: as written, without brackets
	Port   uint16  // Socket, RFC2217
	Chip   string  // Sim: the chip's name, for example esp32c3
	Params []Param // Sim: in the order they were written
}

// Param is one key=value of a sim:// address.
type Param struct {
	Key   string
	Value string // unescaped: %20 is a space, + is a plus
	raw   string // as written
}

// simParams are the keys that a sim:// address may carry.
var simParams = []string{"mac", "revision", "flash", "state", "faults", "app-prints"}

// Parse reads a port name.
func Parse(name string) (Address, error) {
	a, err := parse(name)
	if err != nil {
		return Address{}, fmt.Errorf("port %q: %w", name, err)
	}
	return a, nil
}

func parse(name string) (Address, error) {
	if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Address{}, errors.New("a port name holds no control characters")
	}
	scheme, rest, ok := strings.Cut(name, "://")
	if !ok {
		switch {
		case name == "":
			return Address{}, errors.New("is empty: give a tty, socket://host:port, rfc2217://host:port or sim://CHIP")
		case !strings.Contains(name, "/"):
			return Address{}, fmt.Errorf("is not a path: write /dev/%[1]s for a device, ./%[1]s for a file in this directory", name)
		}
		return Address{Path: name}, nil
	}
	switch Scheme(scheme) {
	case Socket, RFC2217:
		return parseHost(Scheme(scheme), rest)
	case Sim:
		return parseSim(rest)
	}
	return Address{}, fmt.Errorf("has the unknown scheme %q: use a tty's path, socket://host:port, rfc2217://host:port or sim://CHIP", scheme)
}

func parseHost(scheme Scheme, rest string) (Address, error) {
	if strings.ContainsAny(rest, "/?#@ %") {
		return Address{}, fmt.Errorf("only host and port belong behind %s://, for example %s://192.168.4.2:4000", scheme, scheme)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return Address{}, fmt.Errorf("needs host and port, for example %s://192.168.4.2:4000 or %s://[::1]:4000", scheme, scheme)
	}
	if host == "" {
		return Address{}, errors.New("has no host: write localhost for this machine")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return Address{}, fmt.Errorf("has %q where a TCP port from 1 to 65535 belongs", port)
	}
	a := Address{Scheme: scheme, Host: host, Port: uint16(n)}
	if a.rest() != rest {
		return Address{}, fmt.Errorf("is written %s://%s", scheme, a.rest())
	}
	return a, nil
}

func parseSim(rest string) (Address, error) {
	name, query, hasQuery := strings.Cut(rest, "?")
	if _, err := chip.ByName(name); err != nil {
		return Address{}, err
	}
	a := Address{Scheme: Sim, Chip: name}
	if !hasQuery {
		return a, nil
	}
	for part := range strings.SplitSeq(query, "&") {
		key, raw, ok := strings.Cut(part, "=")
		if !ok || !known(key) {
			return Address{}, fmt.Errorf("has the unknown parameter %q: there are %s, each with =value", part, strings.Join(simParams, ", "))
		}
		if _, twice := a.Param(key); twice {
			return Address{}, fmt.Errorf("gives %s twice", key)
		}
		value, err := url.PathUnescape(raw)
		if err != nil {
			return Address{}, fmt.Errorf("%s: %w: write %%25 for a percent sign", key, err)
		}
		a.Params = append(a.Params, Param{Key: key, Value: value, raw: raw})
	}
	return a, nil
}

func known(key string) bool {
	for _, k := range simParams {
		if k == key {
			return true
		}
	}
	return false
}

// Param is the value of a sim:// parameter.
func (a Address) Param(key string) (string, bool) {
	for _, p := range a.Params {
		if p.Key == key {
			return p.Value, true
		}
	}
	return "", false
}

// String is the address as it was parsed.
func (a Address) String() string {
	if a.Scheme == TTY {
		return a.Path
	}
	return string(a.Scheme) + "://" + a.rest()
}

func (a Address) rest() string {
	if a.Scheme != Sim {
		return a.hostPort()
	}
	var b strings.Builder
	b.WriteString(a.Chip)
	for i, p := range a.Params {
		if i == 0 {
			b.WriteByte('?')
		} else {
			b.WriteByte('&')
		}
		b.WriteString(p.Key + "=" + p.raw)
	}
	return b.String()
}

func (a Address) hostPort() string {
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}
