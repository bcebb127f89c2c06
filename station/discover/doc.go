// Package discover finds the serial ports of a station by where they are
// plugged in, and tells when they come and go.
//
// # Names
//
// A slot is a place in a fixture, so it is bound to a position and never to a
// number that the kernel hands out: ttyUSB3 is another board after the next
// re-plug. A position has two names here:
//
//   - the by-path name, for example pci-0000:00:14.0-usb-0:1.2:1.0-port0. It is
//     built from sysfs in the way udev builds ID_PATH and the links in
//     /dev/serial/by-path (systemd: udev-builtin-path_id.c, 60-serial.rules), so
//     it is right where no udev runs, too;
//   - the sysfs path, usb:1-1.2 for a device or usb:1-1.2:1.0 for one interface
//     of it. It begins with the number of the bus, which depends on the order in
//     which the host controllers were found: fine on a machine with one.
//
// A chip's own UART (a Raspberry Pi's ttyAMA0) has a by-path name that begins
// with platform-. UARTs without a name of their own (a PC's ttyS0), unpopulated
// ones and the kernel's console are no ports.
//
// # Truth
//
// Sysfs is the truth: [Scan] reads all of it. What udev has linked is not asked.
// A device that is malformed, or leaves while it is read, is left out and
// touches no other. [Watch] takes the kernel's uevents as a hint that it is time
// to scan again, and scans now and then without one.
//
// # A port's life, for whoever works on it
//
// A position is taken by one device at a time. [Seen] adds to the port:
//
//   - Visit counts the devices that have been at the position. A visit begins
//     with Added and ends with Removed.
//   - Generation counts the position's enumerations. It goes up when a device
//     leaves the bus and comes back, as the USB-JTAG-Serial of a chip (303a:1001)
//     does with every reset. It never goes down.
//   - Away says that the device is off the bus at the moment, and that the grace
//     period ([Options].Grace) has not passed.
//
// The chip's own USB (303a:1001) that returns to its position within the grace
// period with the same serial number, which is its MAC, goes on with its visit:
// Changed is told when it leaves (Away) and when it is back (a higher Generation,
// perhaps another Device). A fast return may be told as one Changed. Another
// device, or a late return, is Removed and then Added, with a new Visit.
//
// An adapter leaves the bus when somebody pulls it, and never for a reset of the
// chip behind it. Most have no serial number, or all of a kind have the same. So
// each of its returns is a new visit, however fast: it may well be the next board.
//
// So a slot's worker that has a unit in work keeps it through Changed, since its
// reset caused that, and opens the port again; it gives up at Removed. A slot
// whose unit is finished takes Added as "a board was plugged in", and Changed as
// nothing new. An adapter that stays in the fixture does not tell when boards are
// exchanged.
//
// What a watcher told may be old by the time a port is opened, and names move
// when a hub comes back: after opening, [Lookup] says which position the device
// belongs to, to be compared by [Port.Key].
//
// # The allow-list
//
// [LoadPorts] reads drop-in files that say which slots exist and which position
// belongs to each; [Assign] puts ports and slots together. A port that nobody
// listed is skipped, and that is no error.
package discover
