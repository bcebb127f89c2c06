package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
)

// Controller is what a fixture can do to a board.
type Controller interface {
	ResetInto(download bool)
	Power(on bool)
	Unplug()
	Plug()
	Status() string
}

// command is a line of the control protocol.
type command string

const (
	resetDownload command = "reset download"
	resetRun      command = "reset run"
	powerOff      command = "power off"
	powerOn       command = "power on"
	powerCycle    command = "power cycle"
	unplug        command = "unplug"
	plug          command = "plug"
	status        command = "status"
)

var commands = []command{resetDownload, resetRun, powerOff, powerOn, powerCycle, unplug, plug, status}

// parseCommand takes a line without its end. Words are parted by one space, in
// lower case: what parses is spelt in one way only.
func parseCommand(line string) (command, error) {
	for _, c := range commands {
		if line == string(c) {
			return c, nil
		}
	}
	names := make([]string, len(commands))
	for i, c := range commands {
		names[i] = string(c)
	}
	if len(line) > 40 {
		line = line[:40] + "…"
	}
	return "", fmt.Errorf("unknown command %q: say one of %s", line, strings.Join(names, ", "))
}

// maxLine bounds a line of the control protocol, in bytes.
const maxLine = 256

// Control serves the control protocol on a unix or TCP socket, to any number of
// clients: one command a line, each answered with a line "ok" or "error: " and a
// reason. They are
//
//	reset download    pulse EN with the strap low
//	reset run         pulse EN with the strap high
//	power off, power on, power cycle
//	unplug, plug      take the port away, bring it back
//	status            answered with "ok " and the status
//
// Commands of all clients are carried out one after the other. A reset or a change
// of power waits 15 ms first: a [PTY] has then followed a baud rate that its
// client set before it asked. A client that sends an endless line is disconnected.
func Control(ctx context.Context, ln net.Listener, c Controller) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { <-ctx.Done(); _ = ln.Close() })
	defer wg.Wait()
	defer cancel()
	var one sync.Mutex
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		gone, leave := context.WithCancel(ctx)
		wg.Go(func() { <-gone.Done(); _ = conn.Close() })
		wg.Go(func() {
			defer leave()
			controlClient(gone, conn, c, &one)
		})
	}
}

// settle is how long a command that makes the board print waits.
const settle = 3 * pollPause

func controlClient(ctx context.Context, conn io.ReadWriter, c Controller, one *sync.Mutex) {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, maxLine), maxLine)
	for lines.Scan() { // takes \n and \r\n
		cmd, err := parseCommand(lines.Text())
		if cmd.prints() && !wait(ctx, settle) {
			return
		}
		one.Lock()
		reply := obey(c, cmd, err)
		one.Unlock()
		if _, err := io.WriteString(conn, reply+"\n"); err != nil {
			return
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		_, _ = fmt.Fprintf(conn, "error: a line has at most %d bytes\n", maxLine)
	}
}

// prints reports whether the board may print at once when the command is obeyed.
func (c command) prints() bool {
	switch c {
	case resetDownload, resetRun, powerOn, powerCycle:
		return true
	}
	return false
}

// obey carries out what parseCommand gave and returns the reply.
func obey(c Controller, cmd command, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	switch cmd {
	case resetDownload, resetRun:
		c.ResetInto(cmd == resetDownload)
	case powerOff, powerOn:
		c.Power(cmd == powerOn)
	case powerCycle:
		c.Power(false)
		c.Power(true)
	case unplug:
		c.Unplug()
	case plug:
		c.Plug()
	case status:
		// The reply stays one line whatever the status holds.
		return "ok " + strings.Join(strings.Fields(c.Status()), " ")
	}
	return "ok"
}
