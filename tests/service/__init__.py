"""The service on a bare Debian with a systemd of its own, in a container: ``make service-test``, as root."""
