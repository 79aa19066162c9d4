//! Pages of the registry.

use blackhole_bus_schema::message::Snapshot;
use blackhole_bus_schema::registry::Registration;

/// Most bytes of a page, about: a quarter of the largest message. One registration has
/// at most 128 KiB of methods, 256 of them would be more than a message may be.
const BYTES: usize = 4 * 1024 * 1024;

/// The part of a page that is not too large; the next begins with the rest.
pub(crate) fn bounded(mut page: Snapshot<Registration>) -> Snapshot<Registration> {
    let mut bytes = 0;
    let fits = page.items.iter().take_while(|item| {
        let methods = item.methods.iter().map(|name| name.len() + 5);
        bytes += 512 + methods.sum::<usize>() + item.endpoint.as_ref().map_or(0, String::len);
        bytes <= BYTES
    });
    let fits = fits.count();
    if let Some(last) = fits.checked_sub(1)
        && fits < page.items.len()
    {
        page.next = page.items.get(last).map(|item| item.instance.to_string());
        page.items.truncate(fits);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use blackhole_bus_schema::names::Generation;

    #[test]
    fn large_registrations_are_told_in_smaller_pages() {
        let item = |index: usize, methods: usize| Registration {
            instance: format!("web.{index}").parse().unwrap(),
            generation: Generation(1),
            methods: vec!["m".repeat(123); methods],
            endpoint: None,
            outstanding: 0,
            draining: false,
        };
        let page = |methods: usize| Snapshot {
            incarnation: 1,
            watermarks: Vec::new(),
            items: (1..=256).map(|index| item(index, methods)).collect(),
            next: Some("web.256".to_owned()),
        };
        let small = bounded(page(10));
        assert_eq!(
            (small.items.len(), small.next.as_deref()),
            (256, Some("web.256"))
        );
        let large = bounded(page(1024));
        let last = large.items.last().unwrap().instance.to_string();
        assert_eq!((large.items.len(), large.next), (31, Some(last)));
    }
}
