// Package systemd owns what the service manager and udev read: the unit, the user,
// the folders and the rules for serial adapters. It promises that the unit passes
// systemd's own checks with an exposure of 1.5 or lower, that a crash is started
// again while a wrong configuration or a damaged journal waits for a person, and
// that a stop has the time that a one-way step needs.
//
// internal/debpkg puts the files where Debian wants them; docs/install.md is for
// administrators.
package systemd
