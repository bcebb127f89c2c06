package discover

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxUevent is the longest message that is read. The kernel's buffer is 2048
// bytes (UEVENT_BUFFER_SIZE) and the header in front of it.
const maxUevent = 8192

// Uevent is a message of the kernel about a device.
type Uevent struct {
	Action  string // add, remove, change, move, bind, unbind, online, offline
	DevPath string // below /sys
	Vars    []Var  // in the kernel's order
}

// Var is one variable of a message.
type Var struct{ Name, Value string }

// ParseUevent reads a message of the kernel: ACTION@DEVPATH, then NAME=VALUE,
// each ended by a NUL (lib/kobject_uevent.c).
func ParseUevent(b []byte) (Uevent, error) {
	if len(b) > maxUevent {
		return Uevent{}, fmt.Errorf("uevent: longer than %d bytes", maxUevent)
	}
	head, rest, ok := bytes.Cut(b, []byte{0})
	if !ok || !utf8.Valid(b) {
		return Uevent{}, errors.New("uevent: not a message of the kernel")
	}
	action, devPath, ok := strings.Cut(string(head), "@")
	if !ok || action == "" || !strings.HasPrefix(devPath, "/") {
		// udevd's own messages begin with libudev.
		return Uevent{}, errors.New("uevent: does not begin with ACTION@DEVPATH")
	}
	u := Uevent{Action: action, DevPath: devPath}
	for len(rest) > 0 {
		var line []byte
		if line, rest, ok = bytes.Cut(rest, []byte{0}); !ok {
			return Uevent{}, errors.New("uevent: ends in the middle of a variable")
		}
		name, value, ok := strings.Cut(string(line), "=")
		if !ok || name == "" {
			return Uevent{}, errors.New("uevent: a variable without a name")
		}
		u.Vars = append(u.Vars, Var{name, value})
	}
	if said, _ := u.Get("ACTION"); said != action {
		return Uevent{}, errors.New("uevent: head and variables name different actions")
	}
	return u, nil
}

// Get gives a variable.
func (u Uevent) Get(name string) (string, bool) {
	i := slices.IndexFunc(u.Vars, func(v Var) bool { return v.Name == name })
	if i < 0 {
		return "", false
	}
	return u.Vars[i].Value, true
}

// Encode gives the message's bytes.
func (u Uevent) Encode() []byte {
	b := append([]byte(u.Action+"@"+u.DevPath), 0)
	for _, v := range u.Vars {
		b = append(append(b, v.Name+"="+v.Value...), 0)
	}
	return b
}

// aboutPorts reports whether the message may mean that a port has come or gone.
func (u Uevent) aboutPorts() bool {
	switch s, _ := u.Get("SUBSYSTEM"); s {
	case "tty", "usb", "usb-serial":
		return true
	}
	return false
}
