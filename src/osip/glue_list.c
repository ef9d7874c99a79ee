/* The three functions of osip2's list that change it. They stand in so that the engine hears when a program changes one
 * of the lists of an osip_t; what they do is what osip2's do. */
#include "glue_osip.h"

/* How often a node was taken out behind the first of a list: what has kept the address of a list's last node asks. Lists
 * share a counter with one in 256 others, so that threads which take parameters out of their messages neither write to one
 * cache line nor send each other's fifos in search of their tails. */
HIDDEN struct partyline_removals partyline_list_removals[256];

static void removed_behind_the_first(const osip_list_t *list)
{
    __atomic_fetch_add(partyline_removals_of(list), 1, __ATOMIC_RELAXED);
}

/* Of a list of ours the count is read without its mutex. */
static int count_to(osip_list_t *list, int count)
{
    __atomic_store_n(&list->nb_elt, count, __ATOMIC_RELAXED);
    return count;
}

static __node_t **link_at(osip_list_t *list, int at)
{
    __node_t **link = &list->node;

    while (at-- > 0 && *link)
        link = (__node_t **)(void *)&(*link)->next;
    return link;
}

HIDDEN int partyline_list_add(osip_list_t *list, void *element, int at)
{
    __node_t **link, *node;

    if (!list)
        return BAD_PARAMETER;
    node = osip_malloc(sizeof *node);
    if (!node)
        return NO_MEMORY;
    if (list->nb_elt == 0)
        list->node = NULL;
    /* -1 is the end; other negative places behave as in osip2. */
    link = link_at(list, at == -1 || at > list->nb_elt ? list->nb_elt : at < 0 ? 1 : at);
    node->element = element;
    node->next = *link;
    *link = node;
    return count_to(list, list->nb_elt + 1);
}

HIDDEN int partyline_list_remove(osip_list_t *list, int at)
{
    __node_t **link, *node;

    if (!list)
        return BAD_PARAMETER;
    if (at < 0 || at >= list->nb_elt)
        return -1;
    if (at > 0)
        removed_behind_the_first(list);
    link = link_at(list, at);
    node = *link;
    *link = (__node_t *)node->next;
    osip_free(node);
    return count_to(list, list->nb_elt - 1);
}

HIDDEN osip_list_t *partyline_list_of(osip_list_iterator_t *iterator)
{
    return iterator->actual ? iterator->li : NULL;
}

HIDDEN void *partyline_list_iterator_remove(osip_list_iterator_t *iterator)
{
    if (osip_list_iterator_has_elem(*iterator)) {
        __node_t *node = iterator->actual;

        if (node != iterator->li->node)
            removed_behind_the_first(iterator->li);
        count_to(iterator->li, iterator->li->nb_elt - 1);
        *iterator->prev = (__node_t *)node->next;
        osip_free(node);
        iterator->actual = *iterator->prev;
    }
    return osip_list_iterator_has_elem(*iterator) ? iterator->actual->element : NULL;
}
