//! Admission, cgroups, limits and usage of the services of a host.
