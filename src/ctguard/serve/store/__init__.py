"""What the node remembers: series, queue, deliveries, alerts, audit trail, users and readings, in a database."""
